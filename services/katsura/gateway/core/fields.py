"""Reading a JSON object field by field, with errors that name the exact path (`messages[2].content`).

Each reader takes one field off the object; `finish` then refuses what nobody asked for, so no field that would change
an answer can be ignored by accident. `null` means absent everywhere, as in OpenAI's API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn, TypeVar

from katsura.domain.errors import InvalidArgumentError, Reason

T = TypeVar("T")

Json = object
"""What `json.loads` gives."""


def refuse(field: str, message: str, reason: Reason = Reason.INVALID_FIELD) -> NoReturn:
    """Raise `InvalidArgumentError` about `field`."""
    raise InvalidArgumentError(f"{field}: {message}", field=field, reason=reason)


def kind_of(value: Json) -> str:
    """JSON's name for the type of `value`, with its article."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object" if isinstance(value, dict) else "null"


def text_of(value: Json, field: str, *, low: int = 0, high: int | None = None) -> str:
    """`value` as text of `low` to `high` characters that UTF-8 can hold (JSON can smuggle lone surrogates in)."""
    if not isinstance(value, str):
        refuse(field, f"expected a string, got {kind_of(value)}")
    if len(value) < low or (high is not None and len(value) > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        refuse(field, f"expected a string of {bounds} characters, got {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(field, "contains a surrogate that is not part of a pair; send valid Unicode")
    return value


class Fields:
    """One JSON object being read.

    Args:
        value: the object; anything else is refused.
        path: where it stands in the request, empty for the body itself.
    """

    def __init__(self, value: Json, path: str = "") -> None:
        if not isinstance(value, dict):
            raise InvalidArgumentError(
                f"{path or 'the body'}: expected an object, got {kind_of(value)}", field=path or None
            )
        self._left: dict[str, Json] = {key: item for key, item in value.items() if item is not None}
        self._path = path

    def path(self, name: str) -> str:
        """Full path of the field `name`."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Json:
        """The raw value of a field, None where it is absent."""
        return self._left.pop(name, None)

    def text(self, name: str, *, low: int = 0, high: int | None = None) -> str | None:
        """A string."""
        value = self.take(name)
        return None if value is None else text_of(value, self.path(name), low=low, high=high)

    def required(self, name: str, value: T | None) -> T:
        """`value`, which was read from `name`, or say that it is missing."""
        if value is None:
            refuse(self.path(name), "required, but missing")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in [low, high]."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            got = value if isinstance(value, float) else kind_of(value)
            refuse(self.path(name), f"expected a whole number, got {got}")
        if not low <= value <= high:
            refuse(self.path(name), f"expected {low} to {high}, got {value}")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A number in [low, high]."""
        value = self.take(name)
        return None if value is None else number_of(value, self.path(name), low, high)

    def flag(self, name: str) -> bool | None:
        """A boolean."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            refuse(self.path(name), f"expected true or false, got {kind_of(value)}")
        return value

    def items(self, name: str, read: Callable[[Json, str], T], *, low: int = 0, high: int) -> tuple[T, ...] | None:
        """An array of `low` to `high` items, each read by `read(item, its path)`."""
        value = self.take(name)
        if value is None:
            return None
        path = self.path(name)
        if not isinstance(value, list):
            refuse(path, f"expected an array, got {kind_of(value)}")
        if not low <= len(value) <= high:
            refuse(path, f"expected {low} to {high} items, got {len(value)}")
        return tuple(read(item, f"{path}[{index}]") for index, item in enumerate(value))

    def object(self, name: str) -> Fields | None:
        """An object, to be read in its turn."""
        value = self.take(name)
        return None if value is None else Fields(value, self.path(name))

    def texts(self, name: str, *, high: int, key_chars: int, value_chars: int) -> Mapping[str, str]:
        """An object of strings (`metadata`): at most `high` pairs."""
        value = self.take(name)
        if value is None:
            return {}
        path = self.path(name)
        if not isinstance(value, dict):
            refuse(path, f"expected an object, got {kind_of(value)}")
        if len(value) > high:
            refuse(path, f"expected at most {high} pairs, got {len(value)}")
        return {
            text_of(key, path, high=key_chars): text_of(item, f"{path}.{key}", high=value_chars)
            for key, item in value.items()
        }

    def neutral(self, name: str, *allowed: Json, why: str) -> None:
        """A field of OpenAI's that we cannot honour: only values that ask for nothing pass (absent, `allowed`)."""
        value = self.take(name)
        if value is not None and not any(value == item and type(value) is type(item) for item in allowed):
            refuse(self.path(name), why, Reason.UNSUPPORTED_FIELD)

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Refuse the first field that is left, unless it is `harmless`: known to leave the answer as it is."""
        for name in sorted(self._left.keys() - set(harmless)):
            refuse(self.path(name), "unknown or unsupported field; remove it", Reason.UNSUPPORTED_FIELD)


def number_of(value: Json, path: str, low: float, high: float) -> float:
    """`value` as a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(path, f"expected a number, got {kind_of(value)}")
    if not low <= value <= high:
        refuse(path, f"expected {low:g} to {high:g}, got {value}")
    return float(value)
