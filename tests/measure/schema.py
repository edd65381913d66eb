"""The JSON Schema of a result file, from the annotations of its dataclasses.

``python -m tests.measure.schema`` writes it to anyecho/measure/result.schema.json.
"""

from __future__ import annotations

__all__ = ("PATH", "schema_text")

import json
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import anyecho
from anyecho.measure.figures import Figures
from anyecho.measure.histogram import MAX_VALUE, Histogram
from anyecho.measure.result import SCHEMA, Document

PATH = Path(anyecho.__file__).parent / "measure" / "result.schema.json"

_NATURAL = {"type": "integer", "minimum": 0}
_DURATION = {"type": "integer", "minimum": 0, "maximum": MAX_VALUE}
_HISTOGRAM = {
    "type": "object",
    "description": "Durations in nanoseconds: 1 ns to 1 h at 3 significant digits.",
    "properties": {
        "count": _NATURAL | {"description": "Number of samples."},
        "min": _DURATION | {"description": "Exact minimum; 0 without samples."},
        "max": _DURATION | {"description": "Exact maximum; 0 without samples."},
        "hdr": {
            "type": "string",
            "contentEncoding": "base64",
            "description": "The compressed V2 encoding of HdrHistogram, for its decoders in many languages.",
        },
    },
    "required": ["count", "min", "max", "hdr"],
}
_SCALARS: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: _NATURAL,
    float: {"type": "number", "minimum": 0},
    str: {"type": "string"},
}


def _schema(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return {"description": arguments[1]} | _schema(arguments[0], definitions)
    if NoneType in arguments:
        [other] = [each for each in arguments if each is not NoneType]
        return {"anyOf": [{**_schema(other, definitions)}, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if hint in _SCALARS:
        return _SCALARS[hint]

    name: str = hint.__name__
    definitions[name] = _HISTOGRAM if hint is Histogram else _of_dataclass(hint, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _of_dataclass(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    properties = {each.name: _schema(hints[each.name], definitions) for each in fields(kind)}
    for name in properties:
        if issubclass(kind, Figures) and name in kind.positive | kind.signed:
            _set_minimum(properties[name], is_signed=name in kind.signed)
    description = (kind.__doc__ or "").partition("\n")[0]
    return {"type": "object", "description": description, "properties": properties, "required": [*properties]}


def _set_minimum(schema: dict[str, Any], *, is_signed: bool) -> None:
    for each in schema.get("anyOf", [schema]):
        each.pop("minimum", None)
        if not is_signed and each["type"] != "null":
            each["exclusiveMinimum"] = 0


def schema_text() -> str:
    definitions: dict[str, Any] = {}
    document = _of_dataclass(Document, definitions)
    constants = {
        "schema": {"const": SCHEMA, "description": "Version of this schema."},
        "program": {"const": "anyecho"},
    }
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Result of anyecho bench",
        **document,
        "properties": constants | document["properties"],
        "required": [*constants, *document["required"]],
        "$defs": dict(sorted(definitions.items())),
    }
    return json.dumps(whole, indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema_text())
