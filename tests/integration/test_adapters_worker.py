"""A language model as worker: over a real memory process, against endpoints that behave and ones that do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import pytest_asyncio

from katsura.adapters.endpoint import ChatEndpoint
from katsura.adapters.worker import Outcome, Worker, WorkerOptions
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as memory_pb
from katsura.api.memory.v1 import work_service_pb2 as pb
from katsura.domain.errors import NotFoundError
from katsura.sdk import connect
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.sdk.work import WorkClient
from katsura.testing.house import MODEL, House

pytestmark = pytest.mark.asyncio(loop_scope="session")
GOOD = "SUMMARY: Found room H-7 for 900 USD.\nFACT: H-7 costs 900 USD"
LIE = "SUMMARY: Found room H-999 for 1 USD."
PASS, FAIL = "VERDICT: PASS\nNOTE: true", "VERDICT: FAIL\nNOTE: it leaves out the view"
HANG = "hang"
Reply = str | int


class Script:
    """A server that speaks the chat API and answers from a list: a text, a status, or nothing until it is closed."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies, self.asked = list(replies), list[dict[str, object]]()
        self.closing = threading.Event()
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                script.asked.append(json.loads(body))
                reply = script.replies.pop(0)
                if reply == HANG:
                    script.closing.wait()
                    return
                status = reply if isinstance(reply, int) else 200
                raw = isinstance(reply, str) and reply.startswith("<")
                answer = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                data = str(reply).encode() if raw else json.dumps(answer).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "0")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Script:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripts() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest_asyncio.fixture(loop_scope="session")
async def connection(memory_key: tuple[str, str]) -> AsyncIterator[Connection]:
    async with connect(memory_key[0], api_key=memory_key[1]) as connection:
        yield connection


async def asked(connection: Connection, validators: Sequence[str] = ("fidelity",)) -> str:
    """A tree that waits for a summary."""
    memory, tree = MemoryClient(connection), f"t-{uuid.uuid4().hex}"
    policy = tree_pb.TreePolicy(compressor="external", validators=validators)
    await memory.create_tree(tree_id=tree, goal="a room", policy=policy)
    await memory.grow(tree, [step("user", "Find a room."), step("assistant", "Found room H-7 for 900 USD.")])
    assert (await memory.compress(tree)).work_id == "compress:main"
    return tree


async def turns(connection: Connection, script: Script, count: int, timeout_s: float = 30.0) -> list[Outcome | None]:
    endpoint = ChatEndpoint(script.url, "scripted", timeout_s=timeout_s)
    options = WorkerOptions(f"w-{uuid.uuid4().hex}")
    worker = Worker(WorkClient(connection), MemoryClient(connection), endpoint, options)
    try:
        return [await worker.run_once() for _ in range(count)]
    finally:
        await endpoint.close()


async def shown(connection: Connection, tree: str) -> list[memory_pb.SegmentKind.ValueType]:
    context = await MemoryClient(connection).assemble_context(tree, budget_tokens=4000)
    return [segment.kind for segment in context.segments]


async def waiting(connection: Connection, tree: str) -> list[pb.WorkItem]:
    return await WorkClient(connection).list(tree)


SUMMARY = memory_pb.SEGMENT_KIND_SUMMARY


async def test_one_model_writes_another_judges_and_then_the_summary_is_trusted(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection, ("fidelity", "external"))
    script = scripts.enter_context(Script([GOOD, PASS]))
    assert await turns(connection, script, 1) == [Outcome.DONE]
    assert SUMMARY not in await shown(connection, tree)
    assert await turns(connection, script, 2) == [Outcome.DONE, None]
    assert SUMMARY in await shown(connection, tree)
    context = await MemoryClient(connection).assemble_context(tree, budget_tokens=4000)
    assert "H-7 costs 900 USD" in context.segments[1].content
    assert script.asked[0]["model"] == "scripted"


async def test_a_summary_that_invents_is_mended_or_never_shown(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    mended = await asked(connection)
    script = scripts.enter_context(Script([LIE, GOOD]))
    assert await turns(connection, script, 1) == [Outcome.DONE]
    assert "h-999" in str(script.asked[1]["messages"])
    assert SUMMARY in await shown(connection, mended)
    stubborn = await asked(connection)
    assert await turns(connection, scripts.enter_context(Script([LIE, LIE])), 1) == [Outcome.GIVEN_BACK]
    assert SUMMARY not in await shown(connection, stubborn)
    (left,) = await waiting(connection, stubborn)
    assert (left.attempts, left.worker_id) == (1, "")
    assert "h-999" in left.reason
    await MemoryClient(connection).delete_tree(stubborn)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (429, "429"),
        (503, "503"),
        (401, "401"),
        ("<html>", "not a chat completion"),
        ("  ", "no summary"),
    ],
)
async def test_an_endpoint_that_fails_costs_an_attempt_and_writes_nothing(
    connection: Connection, scripts: contextlib.ExitStack, reply: Reply, reason: str
) -> None:
    tree = await asked(connection)
    assert await turns(connection, scripts.enter_context(Script([reply])), 1) == [Outcome.GIVEN_BACK]
    (left,) = await waiting(connection, tree)
    assert (left.attempts, left.worker_id, left.given_up) == (1, "", False)
    assert reason in left.reason
    assert SUMMARY not in await shown(connection, tree)
    assert len(await MemoryClient(connection).get_whole_path(tree)) == 2
    await MemoryClient(connection).delete_tree(tree)


async def test_a_model_that_never_answers_is_given_up_after_its_time(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection)
    hanging = scripts.enter_context(Script([HANG]))
    assert await turns(connection, hanging, 1, timeout_s=0.2) == [Outcome.GIVEN_BACK]
    (left,) = await waiting(connection, tree)
    assert "longer than 0.2 s" in left.reason
    await MemoryClient(connection).delete_tree(tree)


async def test_a_verdict_that_cannot_be_read_is_no_verdict(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection, ("fidelity", "external"))
    assert await turns(connection, scripts.enter_context(Script([GOOD, "I like it"])), 2) == [
        Outcome.DONE,
        Outcome.GIVEN_BACK,
    ]
    assert SUMMARY not in await shown(connection, tree)
    assert [item.kind for item in await waiting(connection, tree)] == [pb.WORK_KIND_VALIDATE]
    await MemoryClient(connection).delete_tree(tree)


async def test_a_verdict_against_a_summary_asks_for_a_better_one(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection, ("fidelity", "external"))
    better = "SUMMARY: Found room H-7 for 900 USD, after a search."
    script = scripts.enter_context(Script([GOOD, FAIL, better, PASS]))
    assert await turns(connection, script, 5) == [Outcome.DONE] * 4 + [None]
    assert "it leaves out the view" in str(script.asked[2]["messages"])
    context = await MemoryClient(connection).assemble_context(tree, budget_tokens=4000)
    assert "after a search" in context.segments[1].content


async def test_a_worker_whose_lease_was_taken_over_writes_nothing(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection)
    work = WorkClient(connection)
    (slow,) = await work.claim("slow", tree_id=tree)
    await work.give_back(slow.item, "as if its lease had ended")
    assert await turns(connection, scripts.enter_context(Script([GOOD])), 1) == [Outcome.DONE]
    with pytest.raises(Exception, match="not the newest"):
        await work.summarise(slow.item, tree_pb.SummaryBody(text="late"))
    assert SUMMARY in await shown(connection, tree)


async def test_a_tree_that_is_dropped_under_a_worker_is_no_failure(
    connection: Connection, scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection)
    (work,) = await WorkClient(connection).claim("w", tree_id=tree)
    await MemoryClient(connection).delete_tree(tree)
    with pytest.raises(NotFoundError):
        await WorkClient(connection).renew(work.item)
    assert await turns(connection, scripts.enter_context(Script([])), 1) == [None]


async def test_the_worker_process_works_until_nothing_waits(
    connection: Connection, memory_key: tuple[str, str], scripts: contextlib.ExitStack
) -> None:
    tree = await asked(connection, ("fidelity", "external"))
    script = scripts.enter_context(Script([GOOD, PASS]))
    line = [sys.executable, "-m", "katsura.cli.main", "work", "--memory", memory_key[0], "--"]
    line += ["--endpoint", script.url, "--model", "m", "--until-idle"]
    environment = {
        "KATSURA_API_KEY": memory_key[1],
        "KATSURA_WORKER_API_KEY": "k",
    }
    process = await asyncio.create_subprocess_exec(*line, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, said
    assert SUMMARY in await shown(connection, tree)


async def test_our_own_gateway_is_an_endpoint_and_its_tiny_models_babble_is_never_trusted(
    connection: Connection, house: House
) -> None:
    tree = await asked(connection, ("fidelity", "external"))
    endpoint = ChatEndpoint(f"{house.url}/v1", MODEL, timeout_s=120, max_tokens=8)
    worker = Worker(WorkClient(connection), MemoryClient(connection), endpoint, WorkerOptions("tiny"))
    try:
        outcomes = [await worker.run_once() for _ in range(2)]
    finally:
        await endpoint.close()
    assert None not in outcomes[:1]
    assert SUMMARY not in await shown(connection, tree)
    (left,) = await waiting(connection, tree)
    assert left.attempts >= 1
    await MemoryClient(connection).delete_tree(tree)
