"""Three servers behind the nftables rules of deploy/, in network namespaces: the spread and the replies."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.commands import DEPLOY, command_lines, on_backend
from tests.support.machine import needs_linux, needs_program, skip
from tests.support.process import TIMEOUT

pytestmark = [needs_linux, *map(needs_program, ("nft", "ip", "unshare"))]

RULES = DEPLOY / "nftables" / "anyecho.nft"
CLIENTS = 30
SERVERS = ("10.0.0.11", "10.0.0.12", "10.0.0.13")

#: The network of the script is the machine with the rules. At the end of the script, its processes are killed.
UNSHARE = [*("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork"), "--kill-child", "--mount-proc"]
PREPARE = """
mount -t tmpfs none /run
for name in clients servers; do
    ip netns add $name
    ip link add $name type veth peer name eth0 netns $name
    ip link set $name up
    ip -n $name link set eth0 up
done
ip addr add 10.0.0.2/24 dev servers
ip addr add 10.1.0.254/24 dev clients
for address in {servers}; do ip -n servers addr add $address/24 dev eth0; done
for number in $(seq {clients}); do ip -n clients addr add 10.1.0.$number/24 dev eth0; done
ip -n servers route add default via 10.0.0.2
ip -n clients route add default via 10.1.0.254
echo 1 >/proc/sys/net/ipv4/ip_forward
nft list ruleset >/dev/null
"""
RUN = """
sh -e prepare
echo prepared
nft -f {rules}
for address in {servers}; do
    mkfifo $address
    ip netns exec servers {serve} udp://$address:10000 --admin unix:$address.admin >$address &
    started="$started $!"
done
for address in {servers}; do (read -r echo; read -r admin) <$address; done
ip netns exec clients {client}
for address in {servers}; do {ask} $address.admin; done
kill $started
wait $started
"""

#: Each client sends from an address of its own, and prints the reply and its source.
CLIENT = f"""
import socket
for number in range(1, {CLIENTS + 1}):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout({TIMEOUT})
        sock.bind((f"10.1.0.{{number}}", 0))
        for message in (b"one", b"two"):
            sock.sendto(message, ("10.0.0.2", 10000))
            assert sock.recvfrom(100) == (message, ("10.0.0.2", 10000))
"""

#: Prints the counters of a server.
ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b"GET /stats HTTP/1.0\\r\\n\\r\\n")
    print(sock.makefile().read().splitlines()[-1])
"""


@pytest.mark.by_turns("backend")
def test_clients_are_spread_over_three_servers_and_get_their_replies(backend: str, short_path: Path) -> None:
    [words] = [words for name, words in command_lines() if name == RULES.name]
    words = [word for word in words if word != "udp://:10000"]
    servers = " ".join(SERVERS)
    (short_path / "prepare").write_text(PREPARE.format(servers=servers, clients=CLIENTS))
    run = RUN.format(
        rules=shlex.quote(str(RULES)),
        servers=servers,
        serve=shlex.join([sys.executable, "-m", "anyecho", *on_backend(words, backend)]),
        client=shlex.join([sys.executable, "-c", CLIENT]),
        ask=shlex.join([sys.executable, "-c", ASK]),
    )
    (short_path / "run").write_text(run)
    # The package is found from another directory too.
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(DEPLOY.parent), os.environ.get("PYTHONPATH", "")])}
    command = [*UNSHARE, "sh", "-e", "run"]
    result = subprocess.run(
        command, cwd=short_path, env=environ, capture_output=True, text=True, timeout=2 * TIMEOUT
    )
    if not result.stdout:
        skip(f"network namespaces with nftables ({result.stderr.rpartition(chr(10))[0]})")
    assert (result.returncode, result.stderr) == (0, "")

    counted = [json.loads(line)["datagrams"]["echoed"] for line in result.stdout.splitlines()[1:]]
    assert sum(counted) == 2 * CLIENTS
    # Both datagrams of a client reach one server, and none has most of the clients.
    assert all(count % 2 == 0 and 0 < count < sum(counted) * 2 / 3 for count in counted)
