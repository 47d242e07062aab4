"""Frozen dataclasses as JSON and back, by their type annotations.

Two versions of Katsura share a store during a rollout: a field that the reader does not know is skipped, one that the
writer did not know takes its default.
"""

from __future__ import annotations

import dataclasses
import json
import types
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from katsura.domain.errors import DataLossError

T = TypeVar("T")


def to_json(record: Any) -> str:
    """One line of JSON: bytes as hexadecimal, enums by value, tuples as lists."""
    return json.dumps(record, default=_plain, separators=(",", ":"))


def from_json(kind: type[T], text: str | bytes) -> T:
    """The record of `kind` in `text`. Raises DataLossError where it is not one."""
    try:
        return cast(T, _read(kind, json.loads(text)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLossError(
            f"a stored {kind.__name__} cannot be read ({error}); its writer will put it again"
        ) from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any) -> Any:
    kind = getattr(kind, "__supertype__", kind)
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _read(next(k for k in get_args(kind) if k is not type(None)), value)
    if get_origin(kind) is tuple:
        return tuple(_read(get_args(kind)[0], item) for item in value)
    if dataclasses.is_dataclass(kind):
        hints = _hints(cast(type, kind))
        return cast(type, kind)(**{name: _read(hints[name], value[name]) for name in hints if name in value})
    if kind is bytes:
        return bytes.fromhex(value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float:
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
