"""Headers of the PROXY protocol nobody would think of: a million inputs, and no exception but our own.

::

    python -m tests.fuzz_proxy_protocol [--runs 1000000] [--seed 1]

Guided by coverage where atheris is installed, else by chance. Prints what became of the inputs; exits 1 at the
first that the parser has no answer to, and shows it. Not a part of the suite: it takes a minute.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from tests.net.proxy_headers import IPV4, IPV6, SIGNATURE, UNIX, checked, tlv, v2

SEEDS = (
    b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n",
    b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 0 65535\r\nhello",
    b"PROXY UNKNOWN and so on\r\n",
    v2(IPV4 + tlv(1, b"h2") + tlv(4, b"") + tlv(5, bytes(128))),
    v2(IPV6, kind=0x21),
    v2(UNIX, kind=0x31),
    v2(IPV4, command=0x20),
    v2(kind=0x00),
    checked(tlv(2, b"echo.example")),
)
#: What means something to a parser.
TOKENS = (
    *(b" ", b"\r", b"\n", b"\r\n", b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"::", b":", b".", b"%", b"0"),
    *(b"65536", SIGNATURE, b"\x20", b"\x21", b"\x11", b"\x31", b"\0\x0c", b"\0\0", b"\x0f\xf0", b"\3\0\4"),
    *(b"\xff", b"\xff\xff"),
)
VERSIONS = ("v1", "v2", "require")


class Judge:
    """Shows the parser `runs` inputs, sums up what it made of them, and then ends the process."""

    def __init__(self, parser: ModuleType, runs: int) -> None:
        self.parser = parser
        self.runs = runs
        self.counts: Counter[str] = Counter()
        self.corpus = tempfile.TemporaryDirectory()

    def __call__(self, data: bytes) -> None:
        try:
            self.counts[self.judge(data, VERSIONS[len(data) % 3])] += 1
        except Exception:
            traceback.print_exc()
            print(f"on {data!r}", file=sys.stderr)
            self.leave(1)

        if self.counts.total() == self.runs:
            print(f"{self.runs} inputs:", ", ".join(f"{count} {what}" for what, count in self.counts.most_common()))
            self.leave(0)

    def judge(self, data: bytes, versions: str) -> str:
        try:
            header = self.parser.parse_header(data, versions)
        except self.parser.ProxyProtocolError:
            return "refused"

        if header is None:
            assert len(data) < self.parser.HEADER_MAX
            return "incomplete"

        assert self.parser.parse_header(data[: header.length], versions) == header
        assert self.parser.parse_header(data[: header.length - 1], versions) is None
        assert versions in ("require", f"v{header.version}")
        return f"headers of version {header.version}"

    def leave(self, status: int) -> None:
        self.corpus.cleanup()
        sys.stdout.flush()
        sys.stderr.flush()
        # libFuzzer has the process, and takes an exception for a crash: there is no other way out.
        os._exit(status)


def guided(runs: int, seed: int) -> None:
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=["anyecho.net.proxy_protocol", "ipaddress"]):
        judge = Judge(import_module("anyecho.net.proxy_protocol"), runs)

    for number, data in enumerate(SEEDS):
        Path(judge.corpus.name, str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], f"-seed={seed}", "-max_len=4200", "-verbosity=0", judge.corpus.name], judge)
    atheris.Fuzz()


def by_chance(runs: int, seed: int) -> None:
    judge = Judge(import_module("anyecho.net.proxy_protocol"), runs)
    dice = random.Random(seed)
    while True:
        data = dice.choice(SEEDS)
        for _ in range(dice.randrange(4)):
            data = mutated(data, dice)
        judge(data)


def mutated(data: bytes, dice: random.Random) -> bytes:
    at, to = sorted(dice.randrange(len(data) + 1) for _ in range(2))
    junk = dice.choice([*TOKENS, dice.randbytes(1), dice.randbytes(3), dice.choice(SEEDS)[at:to]])
    return dice.choice(
        [
            data[:at] + junk + data[at:],
            data[:at] + junk + data[at + len(junk) :],
            data[:at] + data[at + 1 :],
            data[:at] + data[to:],
            data[:to] + data[at:to] + data[to:],
            data[:at],
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fuzz the parser of the PROXY protocol.")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args(arguments)
    fuzz = guided if find_spec("atheris") else by_chance
    print("guided by coverage" if fuzz is guided else "by chance", f"(seed {wanted.seed})", flush=True)
    fuzz(wanted.runs, wanted.seed)


if __name__ == "__main__":
    main()
