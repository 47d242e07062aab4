"""Random messages for any RPC, by their descriptors: plausible ones, absurd ones, and most often a mixture.

What a service answers is learned by field name, and by call, so that later messages name trees, branches, nodes and
tokens that are there and belong together; absurd values are drawn instead as often as a message is told to be wild.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_KEPT: Final = 48
_TOGETHER: Final = 0.8
_DEEP: Final = 6
_MANY: Final = (64, 65, 257, 1001, 10_000)
_HUGE: Final = 1 << 20
_MESSAGE_BYTES_MAX: Final = 6 << 20
_TEXTS: Final[Sequence[str]] = (
    "", " ", "\0", "a\0b", "a\nb", "\r\n", "\t", "\x1b[2J", "\x7f", "\ufeff", "\u202e", "\uffff", "日本", "💥" * 40,
    "-1", "0", "1", "007", "²", "٣", "1e9", "nan", "null", "9" * 30, "1" * 5000, "1-2", "1-2-3", "a-1-2", f"{2**64}-0",
    "*", "+", "(", "[", "[[]", "{}", '{"a":', "{x}", "%s%n%d", "$1", "../../x", "a:b", "1:t", ":", "/", "a b", "a.",
    "main ", "[redacted]", ',"x":1}', "x" * 128, "x" * 129, "x" * 5000, "ß" * 70_000, "x" * _HUGE,
)  # fmt: skip
_NUMBERS: Final = (0, 1, -1, 2, 7, 64, 2**31 - 1, -(2**31), 2**31, 2**53 - 1, 2**53, 2**63 - 1, -(2**63))
_SMALL: Final = (0, 1, 1, 2, 5, 30)
_REALS: Final = (0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"))
_BYTES: Final = (b"", b"\0", b"\n", b"\xff\xfe", b"x" * 5000, bytes(_HUGE))
_BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


T = TypeVar("T", str, bytes)


class Messages:
    """Messages drawn from a seed, and from what was learned.

    Args:
        seed: of everything that is drawn.
        kin: gives the name under which values of a field are learned and drawn (`new_tree_id` is a `tree_id`).
        words: plausible values by that name, beside what is learned.
        likely: how often a field is set, by its name or `Message.name`; others are, by half.
    """

    def __init__(
        self,
        seed: int,
        kin: Callable[[FieldDescriptor], str],
        words: Mapping[str, Sequence[Any]],
        likely: Mapping[str, float],
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable, no secret
        self._kin, self._words, self._likely = kin, words, likely
        self._learned: dict[str, list[Any]] = {}
        self._calls: list[dict[str, list[Any]]] = []
        self._echo: dict[str, list[Any]] = {}
        self._room = 0

    def draw(self, kind: Descriptor, wild: float) -> Message:
        """A message; each of its values is absurd with probability `wild`."""
        self._room = _MESSAGE_BYTES_MAX
        self._echo = self.random.choice(self._calls) if self._calls and self.random.random() < 0.6 else {}
        return self._fill(GetMessageClass(kind)(), wild, 0)

    def learn(self, *messages: Message) -> None:
        """Take values from a call that was answered: a later message may take several of them together."""
        call: dict[str, list[Any]] = {}
        for message in messages:
            self._collect(message, call)
        for name, values in call.items():
            for value in values[-4:]:
                self.remember(name, value)
        self._calls = [*self._calls[-_KEPT:], call]

    def _collect(self, message: Message, call: dict[str, list[Any]]) -> None:
        for field, value in message.ListFields():
            for each in _values(field, value):
                if isinstance(each, Message):
                    self._collect(each, call)
                elif field.cpp_type != FieldDescriptor.CPPTYPE_ENUM and _size(each) < _MESSAGE_BYTES_MAX // 32:
                    call[self._kin(field)] = [*call.get(self._kin(field), ())[-_KEPT:], each]

    def remember(self, name: str, value: object) -> None:
        """Let a value be drawn for fields of that name."""
        known = self._learned.setdefault(name, [])
        if len(known) < _KEPT:
            known.append(value)
        else:
            known[self.random.randrange(_KEPT)] = value

    def _fill(self, message: Message, wild: float, depth: int) -> Message:
        kind: Any = message.DESCRIPTOR
        chosen = {o.name: self.random.choice(o.fields).name for o in kind.oneofs}
        for field in kind.fields:
            if field.containing_oneof is not None and chosen[field.containing_oneof.name] != field.name:
                continue
            likely = self._likely.get(f"{kind.name}.{field.name}", self._likely.get(field.name, 0.5))
            if self.random.random() < likely and depth < _DEEP:
                self._set(message, field, wild, depth)
        return message

    def _set(self, message: Message, field: FieldDescriptor, wild: float, depth: int) -> None:
        place = getattr(message, field.name)
        if _is_map(field):
            entry: Any = field.message_type
            key, value = (entry.fields_by_name[name] for name in ("key", "value"))
            for n in range(self._count(wild)):
                place[f"{self._value(field, key, wild)}{n or ''}"] = self._value(field, value, wild)
        elif field.is_repeated:
            count = self._count(wild)
            few = [self._one(field, wild, depth) for _ in range(min(4, count))]
            while len(place) < count and (len(place) < len(few) or self._room > 0):
                place.append(few[len(place) % 4])
                self._room -= _size(few[len(place) % 4 - 1])
        elif field.message_type is not None:
            place.SetInParent()
            self._fill(place, wild, depth + 1)
        else:
            setattr(message, field.name, self._value(field, field, wild))

    def _one(self, field: FieldDescriptor, wild: float, depth: int) -> Any:
        if field.message_type is None:
            return self._value(field, field, wild)
        return self._fill(GetMessageClass(field.message_type)(), wild, depth + 1)

    def _count(self, wild: float) -> int:
        if self.random.random() < wild / 8:
            return self.random.choice(_MANY)
        return self.random.choice((0, 1, 1, 1, 1, 2, 2, 3))

    def _value(self, named: FieldDescriptor, field: FieldDescriptor, wild: float) -> Any:
        """A scalar. `field` is `named`, or the key or value of a map of that name."""
        drawn = self.random
        if field.enum_type is not None:
            named_values = [value.number for value in field.enum_type.values]
            return drawn.choice((-1, 99, 2**31 - 1, 0) if drawn.random() < wild else named_values[1:])
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return drawn.random() < self._likely.get(f"{field.name}=1", 0.5)
        name = self._kin(named)
        within = () if field is named else self._words.get(f"{name}.{field.name}", ())
        echoed = self._echo.get(name, ()) if drawn.random() < _TOGETHER else ()
        known = [
            k for k in echoed or (*within, *self._words.get(name, ()), *self._learned.get(name, ())) if _fits(field, k)
        ]
        absurd = drawn.random() < wild
        if field.cpp_type in _BITS:
            least, most = _BITS[field.cpp_type]
            number = drawn.choice(_NUMBERS if absurd else known or _SMALL)
            return min(max(int(number), least), most)
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return drawn.choice(_REALS)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._bytes(known, absurd)
        if absurd:
            known_text = drawn.choice(known) if known else "x"
            return self._fitting(drawn.choice((*_TEXTS, f"{known_text}\n", f"{known_text}"[::-1], f" {known_text}")))
        return drawn.choice(known) if known else drawn.choice(("", "a", "some words"))

    def _bytes(self, known: Sequence[bytes], absurd: bool) -> bytes:
        if not known or (absurd and self.random.random() < 0.3):
            return self._fitting(self.random.choice(_BYTES))
        found = self.random.choice(known)
        return self._fitting(self.bent(found)[:_HUGE]) if absurd else found

    def _fitting(self, value: T) -> T:
        """`value`, or nothing where the message has no room for it."""
        self._room -= len(value)
        return value if self._room > 0 else value[:0]

    def bent(self, archive: bytes) -> bytes:
        """Lines of JSON with one value changed, or a line left out, doubled or swapped, and without their digest."""
        lines = archive.splitlines(keepends=True)
        if not lines:
            return archive
        at = self.random.randrange(len(lines))
        match self.random.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                lines[at], lines[-1] = lines[-1], lines[at]
            case _:
                lines[at] = self._bent_line(lines[at])
        return b"".join(_without_digest(line) for line in lines)

    def _bent_line(self, line: bytes) -> bytes:
        try:
            value: Any = json.loads(line)
        except ValueError:
            return line
        inner, at = value, None
        while isinstance(inner, dict | list) and inner and (at is None or self.random.random() < 0.7):
            outer, at = inner, self.random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = outer[at]
        if at is not None:
            odd: tuple[Any, ...] = (*_NUMBERS, *_TEXTS[:40], None, [], {}, [[]], True, 0.5, f"{inner}\n")
            outer[at] = inner + 1 if isinstance(inner, int) and self.random.random() < 0.5 else self.random.choice(odd)
        return json.dumps(value).encode() + b"\n"


def _without_digest(line: bytes) -> bytes:
    """The last line of an archive as older versions wrote it: one that was changed is then read, too."""
    return line.split(b',"digest"')[0] + b"}\n" if line.startswith(b'{"end"') and b'"digest"' in line else line


def _fits(field: FieldDescriptor, value: object) -> bool:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return isinstance(value, bytes if field.type == FieldDescriptor.TYPE_BYTES else str)
    return isinstance(value, int | float)


def _size(value: Any) -> int:
    if isinstance(value, Message):
        return value.ByteSize()
    return len(value) if isinstance(value, str | bytes) else 8


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _values(field: FieldDescriptor, value: Any) -> list[Any]:
    if _is_map(field):
        return [*value, *value.values()]
    return list(value) if field.is_repeated else [value]
