"""Reading a process's environment once, with every mistake reported together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TypeVar, cast

from katsura.domain.errors import InvalidArgumentError

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

PREFIX = "KATSURA_"
SHARED = ("KATSURA_LOG_FORMAT", "KATSURA_LOG_LEVEL", "KATSURA_MODEL_CACHE", "KATSURA_DATA")
"""Variables that telemetry, the model cache and the command line read; no room needs to name them."""


class Env:
    """Typed access to KATSURA_ variables. Call `finish` last: it raises once, listing all that is wrong.

    Mistakes are remembered rather than raised, so a person mends the whole environment in one go; until `finish`
    the value handed back for a wrong variable is its default.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._known: set[str] = set(SHARED)
        self._errors: list[str] = []

    def text(self, name: str, default: str | None = None) -> str:
        """A string; required where `default` is None."""
        return self._read(name, default, str, "text") or ""

    def number(self, name: str, default: int | None = None, *, low: int = 0, high: int = 2**62) -> int:
        """A whole number in [low, high]; required where `default` is None."""

        def parse(text: str) -> int:
            value = int(text)
            if not low <= value <= high:
                raise ValueError
            return value

        return self._read(name, default, parse, f"a whole number from {low} to {high}")

    def real(self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e18) -> float:
        """A number in [low, high]; required where `default` is None."""

        def parse(text: str) -> float:
            value = float(text)
            if not low <= value <= high:
                raise ValueError
            return value

        return self._read(name, default, parse, f"a number from {low} to {high}")

    def flag(self, name: str, default: bool = False) -> bool:
        """`true` or `false`."""
        return self._read(name, default, {"true": True, "false": False}.__getitem__, "true or false")

    def choice(self, name: str, kind: type[E], default: E | None = None) -> E:
        """One of an enum's values."""
        return self._read(name, default, kind, "one of " + ", ".join(str(item.value) for item in kind))

    def names(self, name: str, default: Iterable[str] = ()) -> tuple[str, ...]:
        """Comma-separated strings."""
        return self._read(
            name, tuple(default), lambda text: tuple(part.strip() for part in text.split(",") if part.strip()), "names"
        )

    def descriptor(self, name: str) -> int | None:
        """Number of an inherited file descriptor, or None."""
        value = self.number(name, -1, low=-1, high=1 << 20)
        return None if value < 0 else value

    def finish(self) -> None:
        """Raise `InvalidArgumentError` listing malformed, missing and unknown KATSURA_ variables, if there are any."""
        for name in sorted(self._environ):
            if name.startswith(PREFIX) and name not in self._known:
                close = difflib.get_close_matches(name, self._known, n=1)
                self._errors.append(f"{name}: unknown variable" + (f"; did you mean {close[0]}?" if close else ""))
        if self._errors:
            raise InvalidArgumentError("environment:\n  " + "\n  ".join(self._errors), field="environment")

    def _read(self, name: str, default: T | None, parse: Callable[[str], T], expected: str) -> T:
        self._known.add(name)
        raw = self._environ.get(name)
        if raw is None or raw == "":
            if default is None:
                self._errors.append(f"{name}: required; expected {expected}")
                return cast(T, None)  # `finish` raises before anybody uses it
            return default
        try:
            return parse(raw)
        except (ValueError, KeyError):
            self._errors.append(f"{name}: expected {expected}, got {raw!r}")
            return cast(T, default)
