"""One answer as it is drawn: from tokens to text that may be sent, and what a lost shard is rebuilt from.

Held back is what is not certain yet: bytes of an unfinished character, and the beginning of a stop string. Tokens are
counted and remembered as drawn; text after a stop string, and the log-probabilities of its tokens, are never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Decoder(Protocol):
    """Ids to text (`katsura.text.decoding.IncrementalDecoder`)."""

    def push(self, ids: Iterable[int]) -> str:
        """Text that became certain."""
        ...

    def finish(self) -> str:
        """What is held still."""
        ...


class Stops(Protocol):
    """Watches for stop strings (`katsura.text.stops.StopStrings`)."""

    matched: str | None

    def push(self, text: str) -> str:
        """Text that may be sent."""
        ...

    def finish(self) -> str:
        """What is held still."""
        ...


class Finish(StrEnum):
    """Why an answer ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token as the shard drew it; `alternatives` are (id, log-probability), best first."""

    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain: text to send and the tokens it came from. May be empty."""

    text: str
    tokens: tuple[Drawn, ...] = ()


class Choice:
    """The state of one answer.

    Attributes:
        token_ids: everything drawn so far, in order: a rebuilt sequence begins with it.
        text: everything shown so far.
        finish: why it ended; None while it goes on.
    """

    def __init__(self, decoder: Decoder, stops: Stops, stop_token_ids: frozenset[int]) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.finish: Finish | None = None
        self._decoder = decoder
        self._stops = stops
        self._stop_token_ids = stop_token_ids
        self._decoded_chars = 0
        self._waiting: list[tuple[Drawn, int]] = []

    def push(self, tokens: Sequence[Drawn]) -> Piece:
        """Take tokens; nothing once the answer has ended. A stop string in them ends it."""
        shown = ""
        for token in tokens:
            if self.finish is not None:
                break
            self.token_ids.append(token.token_id)
            if token.token_id in self._stop_token_ids:
                continue
            self._waiting.append((token, self._decoded_chars))
            text = self._decoder.push((token.token_id,))
            self._decoded_chars += len(text)
            shown += self._stops.push(text)
            if self._stops.matched is not None:
                self.finish = Finish.STOP
        return self._piece(shown)

    def end(self, finish: Finish) -> Piece:
        """The shard ended it: what was held back is certain now. Nothing if it had ended already."""
        if self.finish is not None:
            return Piece("")
        tail = self._decoder.finish()
        self._decoded_chars += len(tail)
        shown = self._stops.push(tail)
        # A stop string that the last characters complete ends it in its own way.
        self.finish = Finish.STOP if self._stops.matched is not None else finish
        return self._piece(shown + self._stops.finish())

    def _piece(self, shown: str) -> Piece:
        """`shown` with the tokens whose text begins before its end (all of them, when the answer ended unstopped)."""
        self.text += shown
        everything = self.finish is not None and self._stops.matched is None
        tokens = [token for token, begin in self._waiting if everything or begin < len(self.text)]
        self._waiting = [] if self.finish is not None else self._waiting[len(tokens) :]
        return Piece(shown, tuple(tokens))
