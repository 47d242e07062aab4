"""What identifies a call, so that repeating it answers the same result once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from functools import cache
from hashlib import blake2b
from operator import attrgetter
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
        names, values_of, late = _fields(kind)
        said = dict(zip(names, values_of(value), strict=False))
        for name, unsaid in late:
            if (item := getattr(value, name)) != unsaid:
                said[name] = item
        return said
    if isinstance(value, bytes):
        return blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a request has no field of type {kind.__name__}")


@cache
def _fields(kind: Any) -> tuple[tuple[str, ...], Callable[[object], Any], tuple[tuple[str, object], ...]]:
    """Fields that are always said, what gets their values, and the others with the value at which they are not."""
    found = dataclass_fields(kind)
    names = tuple(sorted(f.name for f in found if not f.metadata.get("late")))
    late = tuple((f.name, f.default) for f in found if f.metadata.get("late"))
    return names, attrgetter(*names, names[0]), late  # of two names it makes a tuple


_ENCODER: Final = json.JSONEncoder(default=_plain, sort_keys=True, separators=(",", ":"), check_circular=False)
