"""Fuzz the parser of PROXY headers: a million inputs raise no exception but `ProxyProtocolError`.

::

    python -m tests.net.proxy.fuzz_header [--runs 1000000] [--seed 1]

Guided by coverage if atheris is installed, else random. Prints the outcomes; exits 1 at the first input that raises
another exception, and prints it. Not a part of the test suite: it takes a minute.
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

from tests.net.proxy.headers import IPV4, IPV6, SIGNATURE, UNIX, checked, tlv, v2

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
#: Syntax elements of both versions.
TOKENS = (
    *(b" ", b"\r", b"\n", b"\r\n", b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"::", b":", b".", b"%", b"0"),
    *(b"65536", SIGNATURE, b"\x20", b"\x21", b"\x11", b"\x31", b"\0\x0c", b"\0\0", b"\x0f\xf0", b"\3\0\4"),
    *(b"\xff", b"\xff\xff"),
)
VERSIONS = ("v1", "v2", "require")


class FuzzTarget:
    """Parses each input and counts the outcomes; ends the process after `runs` inputs."""

    def __init__(self, parser: ModuleType, runs: int) -> None:
        self.parser = parser
        self.runs = runs
        self.counts: Counter[str] = Counter()
        self.corpus = tempfile.TemporaryDirectory()

    def __call__(self, data: bytes) -> None:
        try:
            self.counts[self.classify(data, VERSIONS[len(data) % 3])] += 1
        except Exception:
            traceback.print_exc()
            print(f"on {data!r}", file=sys.stderr)
            self.exit(1)

        if self.counts.total() == self.runs:
            print(f"{self.runs} inputs:", ", ".join(f"{count} {what}" for what, count in self.counts.most_common()))
            self.exit(0)

    def classify(self, data: bytes, versions: str) -> str:
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

    def exit(self, status: int) -> None:
        self.corpus.cleanup()
        sys.stdout.flush()
        sys.stderr.flush()
        # libFuzzer owns the process and takes SystemExit for a crash.
        os._exit(status)


def fuzz_by_coverage(runs: int, seed: int) -> None:
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=["anyecho.net.proxy.header", "ipaddress"]):
        target = FuzzTarget(import_module("anyecho.net.proxy.header"), runs)

    for number, data in enumerate(SEEDS):
        Path(target.corpus.name, str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], f"-seed={seed}", "-max_len=4200", "-verbosity=0", target.corpus.name], target)
    atheris.Fuzz()


def fuzz_randomly(runs: int, seed: int) -> None:
    target = FuzzTarget(import_module("anyecho.net.proxy.header"), runs)
    rng = random.Random(seed)
    while True:
        data = rng.choice(SEEDS)
        for _ in range(rng.randrange(4)):
            data = mutate(data, rng)
        target(data)


def mutate(data: bytes, rng: random.Random) -> bytes:
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    junk = rng.choice([*TOKENS, rng.randbytes(1), rng.randbytes(3), rng.choice(SEEDS)[at:to]])
    return rng.choice(
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
    options = parser.parse_args(arguments)
    fuzz = fuzz_by_coverage if find_spec("atheris") else fuzz_randomly
    print("guided by coverage" if fuzz is fuzz_by_coverage else "random", f"(seed {options.seed})", flush=True)
    fuzz(options.runs, options.seed)


if __name__ == "__main__":
    main()
