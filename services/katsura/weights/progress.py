"""How a long preparation tells the person who waits for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Stage(StrEnum):
    """Steps of preparing a model, in the order in which they may happen."""

    WAIT = "wait"
    DOWNLOAD = "download"
    UNPACK = "unpack"
    CONVERT = "convert"
    VERIFY = "verify"


class Progress(Protocol):
    """Receives what happens; the CLI draws bars from it."""

    def advance(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        """`done_bytes` of `total_bytes` of `stage` are done; `None` where the total is not known."""
        ...

    def say(self, message: str) -> None:
        """One sentence for the person: a wait, a repair."""
        ...


class Silent:
    """Progress for nobody."""

    def advance(self, stage: Stage, done_bytes: int, total_bytes: int | None) -> None:
        """Do nothing."""

    def say(self, message: str) -> None:
        """Do nothing."""


SILENT = Silent()
"""The default listener."""
