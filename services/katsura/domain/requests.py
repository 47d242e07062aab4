"""What identifies a call, so that repeating it answers the same result once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from functools import cache
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from types import NoneType
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
    return Request(request_id, blake2b(_text([operation, *fields]).encode(), digest_size=16).hexdigest())


def _text(value: object) -> str:
    """A value as JSON without spaces, names in order; bytes as their digest, a dataclass as an object of its fields."""
    kind: Any = type(value)
    return _writer(kind)(value)


@cache
def _writer(kind: Any) -> Callable[[Any], str]:
    """What writes values of a type: found once, since every write of the service passes here."""
    if issubclass(kind, str):
        return encode_basestring_ascii
    if issubclass(kind, int) and kind is not bool:
        return int.__repr__
    if kind in (bool, float, NoneType):
        return json.dumps
    if issubclass(kind, list | tuple):
        return lambda items: f"[{','.join([_text(item) for item in items])}]"
    if issubclass(kind, bytes):
        return lambda data: f'"{blake2b(data, digest_size=16).hexdigest()}"'
    if issubclass(kind, Mapping):
        return lambda items: f"{{{','.join([f'{_text(str(name))}:{_text(items[name])}' for name in sorted(items)])}}}"
    if is_dataclass(kind):
        return _record_writer(kind)
    raise TypeError(f"a request has no field of type {kind.__name__}")


def _record_writer(kind: Any) -> Callable[[Any], str]:
    found = sorted((f.name, f.default if f.metadata.get("late") else _ALWAYS) for f in dataclass_fields(kind))
    values_of = attrgetter(*(name for name, _ in found), found[0][0])  # of two names it makes a tuple
    fields = [(f'"{name}":', unsaid) for name, unsaid in found]

    def write(value: object) -> str:
        pairs = zip(fields, values_of(value), strict=False)
        said = [head + _text(item) for (head, unsaid), item in pairs if unsaid is _ALWAYS or item != unsaid]
        return f"{{{','.join(said)}}}"

    return write


_ALWAYS: Final = object()
