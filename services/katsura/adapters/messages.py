"""Message lists in LangGraph's serialisation, for savers that get the whole list at every step: only what is new, or
was changed since, is serialised again.

A message is remembered beside a copy of its fields: where it is the same object and its fields still equal the copy,
so does its serialisation. A list that only grew is looked at without a loop of Python's. What is not made of plain data
alone is serialised each time. (A number that is replaced in place by an equal one of another type, 1 by True, goes
unnoticed.)
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import accumulate, islice
from operator import attrgetter, is_
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.base import SerializerProtocol

from katsura.adapters.ropes import Body, Value, common_prefix, plain

_KINDS: Final = frozenset({AIMessage, HumanMessage, SystemMessage, ToolMessage})
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
_EMPTY: Final[dict[type, Any]] = {dict: {}, list: []}
_FIELDS: Final = attrgetter("__dict__")
_EXTRA: Final = attrgetter("__pydantic_extra__")


class Messages:
    """A list of messages as it was serialised last: a body in pieces, one per message. One caller at a time.

    Args:
        serde: LangGraph's own msgpack serializer.
    """

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._items: list[BaseMessage] = []
        self._fields: list[dict[str, Any] | None] = []
        self._parts: list[bytes] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, span: slice, /) -> bytes:
        start, stop, _ = span.indices(len(self))
        first = bisect_right(self._ends, start)
        begin = self._ends[first - 1] if first else 0
        return b"".join(self._parts[first:])[start - begin : stop - begin]

    def unchanged(self, items: list[BaseMessage]) -> int:
        """How many messages `items` begins with as they are here: all, or 0 where one of them is not."""
        count = len(self._items)
        if len(items) < count or not all(map(is_, items, self._items)):
            return 0
        if any(map(_EXTRA, self._items)) or list(map(_FIELDS, self._items)) != self._fields:
            return 0
        return count

    def become(self, items: list[BaseMessage], unchanged: int) -> int:
        """Serialise `items`, whose first `unchanged` are as they are here; how many leading bytes stay."""
        old = self._parts[unchanged:]
        known = {id(item): at for at, item in enumerate(self._items)} if old else {}
        new = [self._entry(item, known.get(id(item))) for item in islice(items, unchanged, None)]
        del self._items[unchanged:], self._fields[unchanged:], self._parts[unchanged:], self._ends[unchanged:]
        same = len(self)
        for part, (_, _, data) in zip(old, new, strict=False):
            if part != data:
                break
            same += len(data)
        ends = accumulate((len(data) for _, _, data in new), initial=len(self))
        self._ends.extend(islice(ends, 1, None))
        for into, column in zip((self._items, self._fields, self._parts), zip(*new, strict=True), strict=False):
            into.extend(column)  # type: ignore[attr-defined]  # each list with its own column
        return same

    def _entry(self, item: BaseMessage, at: int | None) -> tuple[BaseMessage, dict[str, Any] | None, bytes]:
        extra = item.__pydantic_extra__
        if at is not None and not extra and self._fields[at] == item.__dict__:
            return item, self._fields[at], self._parts[at]
        kind, data = self._serde.dumps_typed(item)
        assert kind == "msgpack", "messages are serialised as msgpack"
        return item, None if extra else _copied(item.__dict__), data


def encoded(serde: SerializerProtocol, value: Any, before: Body | None) -> Value:
    """`value` as `serde`, LangGraph's own msgpack serializer, has it, byte for byte.

    Args:
        before: the body of the version before, which is used up; None where it is not at hand.
    """
    if type(value) is not list or not value:
        return plain(*serde.dumps_typed(value), before)
    messages = before if isinstance(before, Messages) else Messages(serde)
    unchanged = messages.unchanged(value)
    if not _KINDS.issuperset(map(type, islice(value, unchanged, None))):
        return plain(*serde.dumps_typed(value), before)
    same = messages.become(value, unchanged)
    if before is not None and before is not messages:
        same = common_prefix(before[:], messages[:])
    return Value("msgpack", _head(len(value)), messages, same)


def _copied(value: Any) -> Any:
    """A copy of plain data; None where it is not all plain (a None inside stays one).

    Empty containers share one copy: most of a message's are, and a list of them is compared at the pace of its caches.
    """
    if not value and type(value) in _EMPTY:
        return _EMPTY[type(value)]
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
