"""Message lists in LangGraph's serialisation, for savers that get the whole list at every step: only what is new, or
was changed since, is serialised again.

A message is remembered by its identity, beside a copy of its fields: where the fields still equal the copy, so does its
serialisation. What is not made of plain data alone is serialised each time. (A number that is replaced in place by an
equal one of another type, 1 by True, goes unnoticed.)
"""

from __future__ import annotations

import struct
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.base import SerializerProtocol

from katsura.adapters.checkpoints import Typed

_KINDS: Final = frozenset({AIMessage, HumanMessage, SystemMessage, ToolMessage})
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
_KEPT: Final = 32768


class Remembered:
    """Serialises as `serde` does, byte for byte. It must be LangGraph's own msgpack serializer."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._known: dict[int, tuple[BaseMessage, dict[str, Any], bytes]] = {}

    def dumps_typed(self, value: Any) -> Typed:
        """The type and the bytes of `value`."""
        if type(value) is not list or not value or not _KINDS.issuperset(map(type, value)):
            return self._serde.dumps_typed(value)
        if len(self._known) > _KEPT + len(value):
            self._known = {id(item): self._known[id(item)] for item in value if id(item) in self._known}
        parts = [_head(len(value))]
        for item in value:
            known = self._known.get(id(item))
            same = known and known[1] == item.__dict__ and not item.__pydantic_extra__
            parts.append(known[2] if known and same else self._new(item))
        return "msgpack", b"".join(parts)

    def _new(self, item: BaseMessage) -> bytes:
        kind, data = self._serde.dumps_typed(item)
        assert kind == "msgpack", "messages are serialised as msgpack"
        fields = _copied(item.__dict__)
        if fields is None or item.__pydantic_extra__:
            self._known.pop(id(item), None)
        else:
            self._known[id(item)] = (item, fields, data)
        return data


def _copied(value: Any) -> Any:
    """A copy of plain data; None where it is not all plain (a None inside stays one)."""
    if type(value) is dict:
        copies = {name: _copied(item) for name, item in value.items()}
        whole = all(type(name) is str for name in value)
        return copies if whole and all(copies[n] is not None or value[n] is None for n in value) else None
    if type(value) is list:
        items = [_copied(item) for item in value]
        return items if all(c is not None or v is None for c, v in zip(items, value, strict=True)) else None
    return value if type(value) in _PLAIN else None


def _head(count: int) -> bytes:
    """Head of a msgpack array (specification: fixarray, array 16, array 32)."""
    if count < 16:
        return bytes((0x90 | count,))
    return struct.pack(">BH", 0xDC, count) if count < 1 << 16 else struct.pack(">BI", 0xDD, count)
