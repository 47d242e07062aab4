"""What identifies a call, so that repeating it answers the same result once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from functools import cache
from hashlib import blake2b
from typing import Any, Final

LATE: Final = {"late": True}
"""Of a field that older versions of us do not know: at its default it is no part of a request's digest, so that one
which an older version answered is still known."""


@dataclass(frozen=True, slots=True)
class Request:
    """Identity of a mutation: repeating it with the same digest answers the same; an empty id is never remembered. The
    lease that it is made under (0: none) is no part of what it says."""

    request_id: str
    digest: str
    lease_token: int = 0


def request_of(request_id: str, operation: str, *fields: object) -> Request:
    """The identity of a call: a digest over its named fields, so that the wire's encoding never matters."""
    text = _ENCODER.encode([operation, *fields])
    return Request(request_id, blake2b(text.encode(), digest_size=16).hexdigest())


def _plain(value: object) -> object:
    """What JSON has no word for, one layer at a time."""
    kind: Any = type(value)
    if is_dataclass(value):
        return {name: item for name, unsaid in _fields(kind) if (item := getattr(value, name)) != unsaid}
    if isinstance(value, bytes):
        return blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a request has no field of type {kind.__name__}")


@cache
def _fields(kind: Any) -> tuple[tuple[str, object], ...]:
    """Names of fields, and the value at which each is left out (one that none has, for most)."""
    return tuple((f.name, f.default if f.metadata.get("late") else _fields) for f in dataclass_fields(kind))


_ENCODER: Final = json.JSONEncoder(default=_plain, sort_keys=True, separators=(",", ":"))
