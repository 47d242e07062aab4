"""Passes, one at a time: when something changed, when the resync is due, and again after trouble.

There is one queue with one entry, since one plan covers the whole scope: a hundred changes are one pass.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from katsura.domain.errors import KatsuraError
from katsura.telemetry import log, metrics, names
from katsura_operator.execute import Outcome
from katsura_operator.leader import LostLeadershipError

_LOG = log.get(__name__)
_PASSES = metrics.counter(names.OPERATOR_PASSES, "Passes by how they ended.", ("result",))
_SECONDS = metrics.histogram(names.OPERATOR_PASS_SECONDS, "Seconds of a pass.")
_WRITES = metrics.counter(names.OPERATOR_WRITES, "Requests that change something.")
_GAP_S: Final = 0.5
"""Between two passes: what happens meanwhile is one change."""
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.5, 30.0
_AGAIN_S: Final = 2.0
"""After a pass that wrote: drains and rollouts go on without events."""


class Loop:
    """Makes passes until it is cancelled or leadership is lost."""

    def __init__(
        self,
        run: Callable[[], Awaitable[Outcome]],
        resync_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._run, self._resync_s, self._sleep = run, resync_s, sleep
        self._changed = asyncio.Event()
        self._changed.set()
        self.beat_s = time.monotonic()
        self.last_error = ""

    def ask(self) -> None:
        """Something changed."""
        self._changed.set()

    async def run(self) -> None:
        """Make passes. Raises LostLeadershipError."""
        failures, wait_s = 0, self._resync_s
        while True:
            await self._wait(wait_s)
            pause_s = await self._pass()
            failures = failures + 1 if pause_s else 0
            wait_s = self._resync_s
            if pause_s:
                await self._sleep(max(pause_s, backoff_s(failures)))
                self.ask()
            else:
                await self._sleep(_GAP_S)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()

    async def _pass(self) -> float:
        """One pass; how long to wait before the next one where it did not end well, else 0."""
        start_s = time.monotonic()
        try:
            outcome = await self._run()
        except LostLeadershipError:
            raise
        except KatsuraError as error:
            self.last_error = error.message
            _PASSES.labels("error").inc()
            _LOG.warning("a pass was cut off", why=error.message)
            return error.retry_after_s or _BACKOFF_FIRST_S
        finally:
            self.beat_s = time.monotonic()
            _SECONDS.observe(self.beat_s - start_s)
        self.last_error = ""
        _WRITES.inc(outcome.writes)
        _PASSES.labels("refused" if outcome.refused else "conflict" if outcome.conflicts else "done").inc()
        if outcome.writes:
            asyncio.get_running_loop().call_later(_AGAIN_S, self.ask)
        return _BACKOFF_FIRST_S if outcome.conflicts or outcome.refused else 0.0


def backoff_s(failures: int) -> float:
    """Seconds before the next try after `failures` (>= 1) in a row, with jitter."""
    longest = min(_BACKOFF_MAX_S, _BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
