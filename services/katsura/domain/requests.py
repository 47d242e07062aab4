"""What identifies a call, so that repeating it answers the same result once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
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
    text = _WRITERS[list]([operation, *fields])
    return Request(request_id, blake2b(text.encode(), digest_size=16).hexdigest())


class _Writers(dict[Any, Callable[[Any], str]]):
    """What writes values of a type as JSON without spaces, names in order; bytes as their digest, a dataclass as an
    object of its fields. Found once per type, since every write of the service passes here."""

    def __missing__(self, kind: Any) -> Callable[[Any], str]:
        found = self[kind] = _writer(kind)
        return found


_WRITERS: Final = _Writers()
_WORDS: Final = {None: "null", False: "false", True: "true"}


def _writer(kind: Any) -> Callable[[Any], str]:
    if issubclass(kind, str):
        return encode_basestring_ascii
    if issubclass(kind, int) and kind is not bool:
        return int.__repr__
    if kind in (bool, NoneType):
        return _WORDS.__getitem__
    if kind is float:
        return json.dumps
    if issubclass(kind, list | tuple):
        return lambda items: f"[{','.join([_WRITERS[type(item)](item) for item in items])}]"
    if issubclass(kind, bytes):
        return lambda data: f'"{blake2b(data, digest_size=16).hexdigest()}"'
    if issubclass(kind, Mapping):
        return lambda items: f"{{{','.join([_pair(str(name), items[name]) for name in sorted(items)])}}}"
    if is_dataclass(kind):
        return _record_writer(kind)
    raise TypeError(f"a request has no field of type {kind.__name__}")


def _pair(name: str, value: object) -> str:
    return f"{encode_basestring_ascii(name)}:{_WRITERS[type(value)](value)}"


def _record_writer(kind: Any) -> Callable[[Any], str]:
    found = sorted(dataclass_fields(kind), key=lambda f: f.name)
    values_of = attrgetter(*(f.name for f in found), found[0].name)  # of two names it makes a tuple
    fields = [(f.name, f.default, bool(f.metadata.get("late")), _default(f)) for f in found]

    def write(value: object) -> str:
        said = [
            unsaid if item is default or (late and item == default) else _pair(name, item)
            for (name, default, late, unsaid), item in zip(fields, values_of(value), strict=False)
        ]
        return f"{{{','.join(filter(None, said))}}}"

    return write


def _default(field: Field[Any]) -> str:
    """What is said of a field at its default, which is where most fields are."""
    return "" if field.metadata.get("late") or field.default is MISSING else _pair(field.name, field.default)
