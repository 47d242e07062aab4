"""Has decisions made in a process of its own, so that whoever renews the lease never waits for one.

decide: question and what changed -> child (`solving`) -> answers        one at a time
a child that ends, or takes longer than the limit, is killed and told of; the next question starts another
a child ends with us: its input ends, whatever ended us
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

from katsura.domain.errors import InternalError, UnavailableError
from katsura.telemetry import log
from katsura_operator.core.desire import Desired
from katsura_operator.core.messages import Key, Question, read_answer
from katsura_operator.core.objects import Object, key_of
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

_LOG = log.get(__name__)
_COMMAND: Final = (sys.executable, "-m", "katsura_operator.solving")
_LINE_MAX: Final = 64 << 20
"""Bytes of one answer: a plan of a thousand nodes has about a million."""
_AT_ONCE: Final = 20
"""Objects that are written or read before others have their turn: a millisecond."""


class SolverFailedError(UnavailableError):
    """No decision: the process that makes them ended, or took too long."""


class Solver:
    """One child, started when it is needed first. `limit_s`: longest time for one decision."""

    def __init__(self, settings: Settings, limit_s: float, command: Sequence[str] = _COMMAND) -> None:
        self._settings, self._limit_s, self._command = settings, limit_s, tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._known: dict[Key, tuple[str, str]] = {}

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        """What is to be written (`core.decision.decide`).

        Raises:
            SolverFailedError: it failed, ended or took too long; asking again starts another where it ended.
        """
        try:
            async with asyncio.timeout(self._limit_s):
                if self._process is None:
                    self._process = await self._start()
                return await self._ask(self._process, seen, trouble)
        except TimeoutError as error:
            await self.close()
            raise SolverFailedError(f"no decision after {self._limit_s:g} s; the planner was ended") from error
        except (OSError, EOFError) as error:
            raise SolverFailedError(f"the planner's process ended with status {await self.close()}") from error
        except InternalError as error:  # the process goes on; its log has the whole story
            raise SolverFailedError(error.message) from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> int | None:
        """End the child, if there is one; its exit status, negative for a signal."""
        process, self._process = self._process, None
        self._known.clear()
        if process is None:
            return None
        if process.returncode is None:
            try:
                async with asyncio.timeout(0.1):  # one that ends by itself says why
                    await process.wait()
            except TimeoutError:
                process.kill()
        return await process.wait()

    async def _start(self) -> asyncio.subprocess.Process:
        # It needs neither our token nor the API server.
        env = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_") and k != "KUBECONFIG"}
        pipe = asyncio.subprocess.PIPE
        made = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe, env=env, limit=_LINE_MAX)
        _LOG.info("a planner has started", pid=made.pid)
        return made

    async def _ask(self, process: asyncio.subprocess.Process, seen: Snapshot, trouble: str) -> Desired:
        assert process.stdin is not None
        assert process.stdout is not None
        objects = {key_of(obj): obj for found in seen.objects.values() for obj in found}
        versions = {key: _version(obj) for key, obj in objects.items()}
        fresh = [key for key, version in versions.items() if self._known.get(key) != version]
        gone = tuple(key for key in self._known if key not in versions)
        question = Question(self._settings, seen.now, trouble, len(fresh), gone, seen.samples, seen.odd)
        process.stdin.write(question.write().encode() + b"\n")
        for start in range(0, len(fresh), _AT_ONCE):
            lines = [json.dumps(objects[key]) for key in fresh[start : start + _AT_ONCE]]
            process.stdin.write(("\n".join(lines) + "\n").encode())
            await process.stdin.drain()
            await asyncio.sleep(0)
        self._known = versions
        desired = Desired()
        count = 0
        while (line := await process.stdout.readline()) != b"\n":
            if not line:
                raise EOFError
            try:
                read_answer(line, desired, objects)
            except InternalError:
                await process.stdout.readline()  # the empty line
                raise
            count += 1
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return desired


def _version(obj: Object) -> tuple[str, str]:
    return str(obj["metadata"].get("uid")), str(obj["metadata"].get("resourceVersion"))
