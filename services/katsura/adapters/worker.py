"""A language model as compressor and validator of trees: claims tasks, asks the model, hands in what it says.

    KATSURA_MEMORY_ADDRESS=... KATSURA_API_KEY=... python -m katsura.adapters.worker --endpoint URL --model NAME

`katsura work` starts it. Run as many as the endpoint carries: leases keep them apart, and one that dies is replaced
when its lease ends. Nothing that a model says is trusted here: summaries pass the tree's validators, and whoever wants
a second opinion lets one model write (`--kind compress`) and another one judge (`--kind validate`).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import secrets
import signal
import socket
import sys
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from katsura.adapters.endpoint import ChatEndpoint
from katsura.adapters.prompts import check_messages, mend_messages, summarise_messages, summary_from, verdict_from
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import work_service_pb2 as pb
from katsura.domain.errors import ConflictError, KatsuraError, NotFoundError, Reason, TemporaryError
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.connection import connect
from katsura.sdk.memory import MemoryClient
from katsura.sdk.work import WorkClient
from katsura.telemetry import log
from katsura.telemetry.setup import configure

_LOG = log.get(__name__)
KINDS: Final = {
    "any": pb.WORK_KIND_UNSPECIFIED,
    "compress": pb.WORK_KIND_COMPRESS,
    "validate": pb.WORK_KIND_VALIDATE,
}
SUMMARIES_PER_CLAIM: Final = 2
"""Summaries of one claim: the second one knows what the validators found wrong with the first."""
_PAGE: Final = 200
_RETRY_S: Final = 5
_PAUSE_MAX_S: Final = 30.0


class Outcome(Enum):
    """What became of a task."""

    DONE = "done"
    GIVEN_BACK = "given back"
    LOST = "lost"
    """Its lease had been taken over: nothing of it was written."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker works.

    Attributes:
        name: names it; its own per process, for it is half of what a write is fenced by.
        kind: tasks that it takes.
        lease_s: how long it holds a task; renewed while the model thinks.
        chars: of all steps together, in one question.
        idle_s: pause while nothing waits.
    """

    name: str
    kind: pb.WorkKind.ValueType = pb.WORK_KIND_UNSPECIFIED
    lease_s: int = 60
    chars: int = 24_000
    idle_s: float = 2.0


class Worker:
    """Takes one task after the other."""

    def __init__(self, work: WorkClient, memory: MemoryClient, endpoint: ChatEndpoint, options: WorkerOptions) -> None:
        self._work = work
        self._memory = memory
        self._endpoint = endpoint
        self._options = options

    async def run(self, stop: asyncio.Event, until_idle: bool = False) -> None:
        """Work until `stop`, or until nothing waits. A memory service that is away is waited for."""
        failures = 0
        while not stop.is_set():
            pause = self._options.idle_s
            try:
                outcome = await self.run_once()
                failures = 0
                if outcome is not None:
                    _LOG.info("task", outcome=outcome.value)
                    continue
                if until_idle:
                    return
            except TemporaryError as error:
                failures += 1
                pause = min(_PAUSE_MAX_S, pause * 2**failures)
                _LOG.warning("the memory service does not answer", error=error.message)
            try:
                async with asyncio.timeout(pause):
                    await stop.wait()
            except TimeoutError:
                continue

    async def run_once(self) -> Outcome | None:
        """Take one task; None where none waits."""
        options = self._options
        works = await self._work.claim(options.name, kind=options.kind, lease_s=options.lease_s)
        if not works:
            return None
        item = works[0].item
        try:
            return await self._holding(item, self._do(works[0]))
        except NotFoundError:
            return Outcome.LOST  # the tree was dropped
        except KatsuraError as error:
            if error.reason is Reason.LEASE_LOST:
                return Outcome.LOST
            wait = _RETRY_S if error.retry_after_s is None else math.ceil(error.retry_after_s)
            return await self._give_back(item, error.message, wait if isinstance(error, TemporaryError) else _RETRY_S)
        except ValueError as error:
            return await self._give_back(item, str(error), 0)

    async def _do(self, work: pb.ClaimedWork) -> Outcome:
        steps = await self._steps(work)
        if work.item.kind == pb.WORK_KIND_VALIDATE:
            answer = await self._endpoint.ask(check_messages(work, steps, self._options.chars))
            await self._work.judge(work.item, verdict_from(answer, self._options.name))
            return Outcome.DONE
        asked = summarise_messages(work, steps, self._options.chars)
        note = ""
        for _ in range(SUMMARIES_PER_CLAIM):
            answer = await self._endpoint.ask(asked)
            done = await self._work.summarise(work.item, summary_from(answer))
            summary = done.summary.summary
            if summary.status != tree_pb.SUMMARY_STATUS_FAILED:
                return Outcome.DONE
            note = summary.note
            asked = mend_messages(asked, answer, [text for check in done.checks for text in check.findings])
        return await self._give_back(work.item, note, 0)

    async def _steps(self, work: pb.ClaimedWork) -> Sequence[tree_pb.Node]:
        nodes: list[tree_pb.Node] = []
        end = work.last_covered
        while len(nodes) < work.covered_count:
            size = min(_PAGE, work.covered_count - len(nodes))
            page = await self._memory.get_path(work.item.tree_id, branch=work.path_branch, end_node=end, page_size=size)
            nodes[:0] = page.nodes
            end = page.next_end_node
            if not end:
                break
        return nodes

    async def _give_back(self, item: pb.WorkItem, reason: str, retry_after_s: int) -> Outcome:
        _LOG.warning("a task is given back", work=item.work_id, tree=item.tree_id, reason=reason)
        try:
            await self._work.give_back(item, reason[:1000], retry_after_s=retry_after_s)
        except (ConflictError, NotFoundError):
            return Outcome.LOST
        return Outcome.GIVEN_BACK

    async def _holding(self, item: pb.WorkItem, doing: Coroutine[None, None, Outcome]) -> Outcome:
        """`doing`, with the lease renewed until it ends; given up at once where the lease is lost."""
        task = asyncio.get_running_loop().create_task(doing)
        try:
            while True:
                done, _ = await asyncio.wait({task}, timeout=self._options.lease_s / 3)
                if done:
                    return task.result()
                await self._work.renew(item, lease_s=self._options.lease_s)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def serve(options: WorkerOptions, endpoint: ChatEndpoint, environ: Mapping[str, str], until_idle: bool) -> None:
    """Work until SIGTERM, or until nothing waits. A task under way when told to stop is finished first."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    address, key = environ["KATSURA_MEMORY_ADDRESS"], environ["KATSURA_API_KEY"]
    files = [environ.get(name, "") for name in ("KATSURA_TLS_CERT", "KATSURA_TLS_KEY", "KATSURA_TLS_CA")]
    tls = TlsFiles(*map(Path, files)) if all(files) else None
    async with connect(address, api_key=key, tls=tls) as connection:
        try:
            await Worker(WorkClient(connection), MemoryClient(connection), endpoint, options).run(stop, until_idle)
        finally:
            await endpoint.close()


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="katsura work", description="Summarise and check with a language model.")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="OpenAI-compatible, ends in /v1")
    parser.add_argument("--model", required=True, help="name of the model there")
    parser.add_argument("--kind", choices=tuple(KINDS), default="any", help="tasks to take (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="of one answer (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=800, help="of one answer (default: %(default)s)")
    parser.add_argument("--chars", type=int, default=24_000, help="of steps in one question (default: %(default)s)")
    parser.add_argument("--lease", type=int, default=60, metavar="S", help="to hold a task (default: %(default)s)")
    parser.add_argument("--until-idle", action="store_true", help="end when nothing waits")
    a = parser.parse_args(arguments)
    missing = [name for name in ("KATSURA_MEMORY_ADDRESS", "KATSURA_API_KEY") if not environ.get(name)]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not set; start this with `katsura work`")
    name = f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(3)}".replace(" ", "-")
    configure("worker", name, environ)
    endpoint = ChatEndpoint(a.endpoint, a.model, environ.get("KATSURA_WORKER_API_KEY", ""), a.timeout, a.max_tokens)
    options = WorkerOptions(name, KINDS[a.kind], a.lease, a.chars)
    asyncio.run(serve(options, endpoint, environ, a.until_idle))


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
