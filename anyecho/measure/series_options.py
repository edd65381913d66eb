"""Options of a series of runs and of a server of its own: the only place of their defaults and help texts."""

from __future__ import annotations

__all__ = ("Carrier", "Engine", "OwnServerOptions", "SeriesOptions")

import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, TypeAlias

from anyecho.backends import Backend
from anyecho.errors import UsageError
from anyecho.measure.options import BenchOptions
from anyecho.options import option, option_group
from anyecho.units import Rate, Size
from anyecho.validation import check_types, require_min

Carrier: TypeAlias = Literal["tcp", "tls", "unix", "udp"]
Engine: TypeAlias = Literal["auto", "events", "tasks"]

#: Runs of each server that --matrix compares: the smallest p-value of 7 pairs is 0.016.
_COMPARED = 7


@option_group("Options")
@dataclass(frozen=True, kw_only=True)
class SeriesOptions:
    """The runs of a series. A list of several values is a sweep: a run for each, and each combination.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    connections: tuple[int, ...] = option(
        (BenchOptions.connections,),
        "Connections, or a list like 1,10,100: a run of each.",
        name=("--connections", "-c"),
    )
    rate: tuple[Rate | None, ...] = option(
        (BenchOptions.rate,),
        "Messages per second in all, each sent when due (open loop); off: when a reply is back (closed loop); "
        "or a list.",
        name=("--rate", "-r"),
    )
    size: tuple[Size, ...] = option((BenchOptions.size,), "Bytes per message, or a list.", name=("--size", "-s"))
    pipeline: tuple[int, ...] = option(
        (BenchOptions.pipeline,),
        "Maximum outstanding messages per connection, or a list.",
        name=("--pipeline", "-P"),
    )
    repeat: int | None = option(
        None,
        "Runs of each configuration, interleaved (default: 7 with --matrix, else 1).",
        show_default=False,
        group="Load",
    )
    matrix: bool = option(
        False,
        "Without ADDRESS: compare its own server on each installed backend and engine.",
        negative=(),
        group="Load",
    )
    find_rate: str | None = option(
        None, "Find the highest rate at which this holds and nothing is lost, like 'p99<1ms'.", metavar="CONDITION"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("connections", "rate", "size", "pipeline"):
            if not getattr(self, name):
                raise UsageError(f"{name} must have a value", options=(name,))
        require_min(1, self, ("repeat",))
        if self.find_rate is not None and (self.matrix or self.rounds * self._configurations > 1):
            names = ("find_rate", "matrix", "repeat")
            raise UsageError("find_rate excludes matrix, repeat and lists of values", options=names)

    @property
    def _configurations(self) -> int:
        return len(self.connections) * len(self.rate) * len(self.size) * len(self.pipeline)

    @property
    def rounds(self) -> int:
        return self.repeat or (_COMPARED if self.matrix else 1)

    def loads(self, options: BenchOptions) -> list[BenchOptions]:
        """Return `options` with each combination of the lists. Raises `UsageError`."""
        lists = product(self.connections, self.rate, self.size, self.pipeline)
        return [
            replace(options, connections=connections, rate=rate, size=size, pipeline=pipeline)
            for connections, rate, size, pipeline in lists
        ]


@option_group("Own server")
@dataclass(frozen=True, kw_only=True)
class OwnServerOptions:
    """The server that `anyecho bench` starts if it is given no address.

    Raises:
        UsageError: a value is unknown.
    """

    carrier: Carrier = option("tcp", "Without ADDRESS: carrier between the load and its own server.")
    server_backend: Backend = option("asyncio", "Without ADDRESS: event loop of its own server.")
    server_engine: Engine = option("auto", "Without ADDRESS: engine of its own server.")

    def __post_init__(self) -> None:
        check_types(self)

    def address(self, family: Literal[4, 6] | None = None, name: str = "anyecho-bench") -> str:
        """Return the address that the server is told to listen on; `name` is that of a Unix socket."""
        if self.carrier == "unix":
            # An abstract name leaves no file behind; other systems than Linux have none.
            return f"unix:{'@' if sys.platform == 'linux' else f'{tempfile.gettempdir()}/'}{name}"

        return f"{self.carrier}://{'[::1]' if family == 6 else '127.0.0.1'}:0"

    def command(self, family: Literal[4, 6] | None = None, name: str = "anyecho-bench") -> list[str]:
        """Return the command line of the server."""
        words = ["serve", "-b", self.address(family, name), "--backend", self.server_backend]
        if self.carrier == "udp":
            return [*words, "--udp-rate", "off", "--unsafe-udp"]  # all of the load comes from one source

        words += ["--engine", self.server_engine]
        return [*words, "--ssl-self-signed"] if self.carrier == "tls" else words

    @property
    def engine(self) -> str:
        """The engine; "" over UDP, which has one only."""
        return "" if self.carrier == "udp" else self.server_engine
