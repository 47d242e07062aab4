"""Stop strings in a stream: what may be the beginning of one is held back."""

from __future__ import annotations

from collections.abc import Sequence

from katsura.domain.errors import InvalidArgumentError

MAX_STOPS = 16
MAX_STOP_CHARS = 1024


class StopStrings:
    """Watches one stream of text; the result does not depend on how the text is cut into pieces.

    The stop string that is complete first ends the stream; of several that end together the longest counts. It is
    not part of the text.

    Attributes:
        matched: the stop string that ended the stream; `None` while none has.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
            raise InvalidArgumentError(
                f"stop: use at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", field="stop"
            )
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The part of the text so far that may be sent now; nothing once a stop string was seen."""
        if self.matched is not None:
            return ""
        text = self._held + text
        ends = [(at + len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            # `min` keeps the first of equals, and longer stop strings come first.
            end, self.matched = min(ends, key=lambda found: found[0])
            self._held = ""
            return text[: end - len(self.matched)]
        keep = self._begun(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is held still, at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        return next(
            (n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)), 0
        )
