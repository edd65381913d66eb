"""The JSON of requests to the control API, checked as toxiproxy does, and its errors.

It must not know what the requests change.
"""

from __future__ import annotations

__all__ = ("RequestFailed", "decode", "error_response", "explain", "flag", "require_fields", "text")

import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from anyecho.errors import AnyechoError, BindError
from anyecho.net.http import Response

T = TypeVar("T", dict[str, Any], list[Any])


class RequestFailed(AnyechoError):
    """The request is answered with an error: its text and `status`."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def decode(body: bytes, kind: type[T]) -> T:
    """Return the JSON value in `body`, an object or an array; an empty one for null. Raises `RequestFailed`."""
    if not body.strip():
        raise _bad("EOF")
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # it is sent back, and logged
    except UnicodeEncodeError:
        raise _bad("a text has a lone surrogate") from None
    except (ValueError, RecursionError) as exc:
        raise _bad(f"no JSON: {exc}") from None

    return _of_kind(value, kind)


def _of_kind(value: object, kind: type[T]) -> T:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise _bad(f"not an {'object' if kind is dict else 'array'}")

    return value


def require_fields(given: object, where: str = "") -> Mapping[str, Any]:
    """Return `given`, an object with a name and an upstream. Raises `RequestFailed`."""
    proxy: dict[str, Any] = _of_kind(given, dict)
    for key in ("name", "upstream"):
        if not text(proxy, key):
            raise RequestFailed(f"missing required field: {key}{where}", 400)

    return proxy


def text(given: Mapping[str, Any], key: str, default: str = "") -> str:
    """Return a string in the object `given`. Raises `RequestFailed`."""
    value = given.get(key)
    if value is not None and not isinstance(value, str):
        raise _bad(f"{key} must be a string")

    return default if value is None else value


def flag(given: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a boolean in the object `given`. Raises `RequestFailed`."""
    value = given.get(key)
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{key} must be true or false")

    return default if value is None else value


def explain(error: AnyechoError) -> tuple[str, int]:
    """Return the text and the status for `error`."""
    if isinstance(error, RequestFailed):
        return str(error), error.status

    # A name that cannot be resolved or a port in use is no mistake of the request.
    return (str(error), 500) if isinstance(error, BindError) else (f"bad request body: {error}", 400)


def error_response(error: AnyechoError) -> Response:
    """Return the answer to a request that failed. toxiproxy sends this JSON as text."""
    message, status = explain(error)
    body = Response.json({"error": message, "status": status}).body
    return Response(status=status, body=body, headers={"X-Content-Type-Options": "nosniff"})


def _bad(detail: str) -> RequestFailed:
    return RequestFailed(f"bad request body: {detail}", 400)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
