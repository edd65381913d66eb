"""The base of the dataclasses of a result: figures that no run has are refused, in a file and in the program."""

from __future__ import annotations

__all__ = ("Figures",)

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from anyecho.errors import InternalError


class Figures:
    """The numbers of a dataclass are 0 or more; those in `positive` are more than 0, those in `signed` any.

    Those in `largest` are at most that.

    Raises:
        InternalError: a number is too small or too large.
    """

    positive: ClassVar[frozenset[str]] = frozenset()
    signed: ClassVar[frozenset[str]] = frozenset()
    largest: ClassVar[Mapping[str, float]] = {}

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = min(_numbers(value), default=None)
            if least is None or name in self.signed:
                continue
            is_too_large = name in self.largest and least > self.largest[name]
            if least < 0 or (least == 0 and name in self.positive) or is_too_large:
                raise InternalError(f"{name} is {least}, which no run has: {self}")


def _numbers(value: Any) -> Iterator[float]:
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, int | float):
            yield each
