"""Every RPC of the memory process under random, absurd and huge messages, on a real Valkey.

Whatever comes, no answer is INTERNAL or UNKNOWN, the process lives, a refusal says by a field of the request and a
short sentence what is wrong, and every tree can be read, checked and copied afterwards.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from katsura.api.memory.v1 import block_service_pb2, memory_service_pb2, usage_service_pb2, work_service_pb2
from katsura.api.memory.v1 import memory_archive_pb2 as archive_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.domain.errors import AlreadyExistsError, InvalidArgumentError, KatsuraError, Reason
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext, outgoing
from katsura.rpc.status import from_rpc_error
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.sdk.work import WorkClient
from katsura.testing.process import ServedProcess, memory_process
from katsura.testing.rpc_fuzz import Messages
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
CALL = CallContext(Tenant(TenantId("fuzz"), bytes(32)), internal=True)
SERVICES = [
    pb.DESCRIPTOR.services_by_name[name]
    for pb, name in (
        (memory_service_pb2, "MemoryService"),
        (block_service_pb2, "BlockService"),
        (usage_service_pb2, "UsageService"),
        (work_service_pb2, "WorkService"),
    )
]
METHODS = [method for service in SERVICES for method in service.methods]
OFTEN = {
    "Grow": 6, "Compress": 3, "Fork": 2, "SetSlots": 2, "ExportTree": 2, "ImportTree": 2, "ClaimWork": 2,
    "DeleteTree": 0.1, "AcquireLease": 0.4, "Revise": 2, "BeginSubgoal": 2, "EndSubgoal": 2, "ResumeStep": 2,
}  # fmt: skip
KIN = {
    "tree_ids": "tree_id", "new_tree_id": "tree_id", "source_tree_id": "tree_id", "held_by_tree": "tree_id",
    "source": "branch", "other_branch": "branch", "new_branch": "branch", "birth_branch": "branch", "name": "branch",
    "default_branch": "branch", "parent_branch": "branch", "path_branch": "branch", "abandoned_branch": "branch",
    "next_page_token": "page_token", "client_step_ids": "client_step_id", "resume_tokens": "resume_token",
}  # fmt: skip
NODES = ("node", "head", "restore", "covered", "summary_id", "pick", "expand", "boundary", "subgoal", "cause")
WORDS: dict[str, Sequence[Any]] = {
    "request_id": ["", "", "", *(f"r{n}" for n in range(12))],
    "client_step_id": ["", "", "", "c1", "c2", "c 3"],
    "branch": ["", "", "main", "side"],
    "role": ["user", "assistant", "tool", "system"],
    "content": ["hello", "the door is open", "x" * 300],
    "compressor": ["", "extractive", "external"],
    "validators": ["fidelity", "outcome", "external"],
    "node_id": [1, 2, 3, 4, 5],
    "page_size": [0, 1, 5, 100],
    "budget_tokens": [50, 500, 4000],
    "reserve_tokens": [0, 10],
    "tokenizer_digest": ["d1", "d2"],
    "token_ids": [1, 2, 3],
    "lease_s": [1, 30],
    "ttl_s": [0, 0, 0, 3600],
    "hint_limit": [0, 3],
    "rollup_fanout": [0, 2],
    "raw_token_limit": [0, 10],
    "durability": [0],
    "events_per_message": [0, 5],
    "after_revision": [0, 1, -1],
    "worker_id": ["w1"],
    "key": ["k1", "k2", "k3"],
    "owner": ["ada", "bob"],
    "labels.key": ["team"],
    "labels.value": ["red", "blue"],
}
LIKELY = {
    name: likely
    for likely, names in (
        (1.0, "role steps grow query lines owner scope claim worker_id writes key title holder resolution validator"),
        (1.0, "budget_tokens to_node_ids RenewLeaseRequest.lease_token ReleaseLeaseRequest.lease_token Wait.what"),
        (0.95, "tree_id content text name node_id unconditional unconditional=1"),
        (
            0.9,
            "node_ids references client_step_ids pick work_id token summary_id states tokenizer_digest undo_ref value",
        ),
        (0.9, "CompleteWorkRequest.summary_body AddReferencesRequest.references MergeRequest.source BlockOwner.owner"),
        (0.7, "kind attachments restore_after"),
        (0.4, "cost effect summary_body page_token reserve_tokens last_covered new_branch RollUpRequest.summary_ids"),
        (0.3, "MergeRequest.pick"),
        (0.2, "new_tree_id tool_call wait relation related_node_ids dedupe policy validators compressor replace"),
        (0.1, "source_tree_id beside lease_token labels tree_ids resume_tokens kinds durability ttl_s default_branch"),
        (0.1, "include_token_ids Reference.tree_id"),
        (0.05, "expected_head"),
    )
    for name in names.split()
}
"""How often a field is set; `=1`: how often it is true."""
TOGETHER, NEW_TREE_EVERY = 4, 25


def kin(field: FieldDescriptor) -> str:
    """Under which name values of a field are shared with others."""
    integer = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_INT32)
    if integer and any(part in field.name for part in NODES):
        return "node_id"
    return KIN.get(field.name, field.name)


class Fuzz:
    """Calls, what became of them, and what is wrong with that."""

    def __init__(self, channel: grpc.aio.Channel, seed: int) -> None:
        self.channel = channel
        self.messages = Messages(seed, kin, WORDS, LIKELY)
        self.metadata = outgoing(CALL, TOKEN)
        self.outcomes: Counter[tuple[str, str]] = Counter()

    async def begin(self, tree: str) -> None:
        """A tree with steps, one that waits, two summaries and a claimed task, so that what follows finds something."""
        connection = Connection(self.channel, internal_token=TOKEN, call=CALL)
        memory, named = MemoryClient(connection), memory_service_pb2.GetTreeRequest(tree_id=tree)
        await memory.create_tree(tree_id=tree, goal="g")
        for turn in range(2):
            await memory.grow(tree, [step("user", f"said {turn}.{n}") for n in range(3)])
            self.messages.learn(named, await memory.compress(tree))
        waiting = tree_pb.Step(role="assistant", content="may I?", wait=tree_pb.Wait(what="a yes"))
        self.messages.learn(named, await memory.grow(tree, [waiting]))
        work = WorkClient(connection)
        await work.schedule(tree)
        self.messages.learn(named, *await work.claim("w1", tree_id=tree))

    async def call(self, method: MethodDescriptor, requests: Sequence[Message]) -> list[Message]:
        """One call, whole; of a Watch its first messages."""
        answer = GetMessageClass(method.output_type)
        make = getattr(self.channel, "_".join(styles_of(method)))
        begin = make(
            path_of(method), request_serializer=lambda m: m.SerializeToString(), response_deserializer=answer.FromString
        )
        sent = iter(requests) if method.client_streaming else requests[0]
        running = begin(sent, metadata=self.metadata, timeout=60)
        if not method.server_streaming:
            return [await running]
        found: list[Message] = []
        async for message in running:
            found.append(message)
            if method.name == "Watch" and len(found) == 3:
                running.cancel()
                break
        return found

    async def some(self, wild: float) -> None:
        """One random call, judged."""
        (method,) = self.messages.random.choices(METHODS, [OFTEN.get(m.name, 1) for m in METHODS])
        count = self.messages.random.choice((0, 1, 2, 3)) if method.client_streaming else 1
        requests = [self.messages.draw(method.input_type, wild) for _ in range(count)]
        try:
            answers = await self.call(method, requests)
        except grpc.aio.AioRpcError as error:
            self.outcomes[method.name, error.code().name] += 1
            self.judge(method, requests, error)
            return
        self.outcomes[method.name, "OK"] += 1
        self.messages.learn(*requests, *answers)
        if method.name == "ExportTree":
            self.messages.remember(
                "lines", b"".join(m.lines for m in answers if isinstance(m, archive_pb.ExportTreeResponse))
            )

    def judge(self, method: MethodDescriptor, requests: Sequence[Message], failed: grpc.aio.AioRpcError) -> None:
        """A refusal is one of ours, says what is wrong in a sentence, and names a field that there is."""
        error = from_rpc_error(failed)
        if method.client_streaming and error.reason is Reason.PEER_UNAVAILABLE and "send it again" in error.message:
            return  # gRPC lost what the service said
        said = f"{method.name}: {failed.code().name}: {(failed.details() or '')[:300]!r} to {str(requests)[:2000]}"
        assert failed.code().name not in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"), said
        assert error.reason is not Reason.UNSPECIFIED or failed.code().name == "DATA_LOSS", said
        assert 10 < len(error.message) < 1000, said
        if failed.code().name == "INVALID_ARGUMENT":
            assert error.field, said
            assert _first(error.field) in _names(method), f"{error.field} is no field: {said}"

    async def check_trees(self) -> int:
        """Every tree can be read in all ways, is what its hashes say, and can be copied."""
        memory = MemoryClient(Connection(self.channel, internal_token=TOKEN, call=CALL))
        trees, token = [], ""
        while True:
            page = await memory.list_trees(page_token=token)
            trees += [tree.tree_id for tree in page.trees]
            if not (token := page.next_page_token):
                break
        for n, tree in enumerate(trees):
            with tolerated(Reason.TREE_NOT_FOUND):  # it has expired since
                await self._check_tree(memory, tree, f"copy-{n}")
        return len(trees)

    async def _check_tree(self, memory: MemoryClient, tree: str, copy: str) -> None:
        found = await memory.get_tree(tree)
        for branch in found.branches:
            path = await memory.get_whole_path(tree, branch=branch.name)
            assert [node.depth for node in path] == list(range(1, branch.depth + 1)), f"{tree} {branch}"
            with tolerated(Reason.BUDGET_TOO_SMALL):
                await memory.assemble_context(tree, branch=branch.name, budget_tokens=100_000)
        verified = await memory.verify_tree(tree)
        assert not verified.mismatches, f"{tree}: {verified.mismatches}"
        assert verified.node_count == found.tree.node_count
        pieces = [piece async for piece in memory.export_tree(tree)]

        async def again() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        copied = await memory.import_tree(again(), tree_id=copy)
        assert copied.root_digest == verified.root_digest
        await memory.delete_tree(copy)


@contextmanager
def tolerated(reason: Reason) -> Iterator[None]:
    try:
        yield
    except KatsuraError as error:
        if error.reason is not reason:
            raise


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


def styles_of(method: MethodDescriptor) -> tuple[str, str]:
    return "stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary"


def _first(field: str) -> str:
    return field.partition(".")[0].partition("[")[0]


def _names(method: MethodDescriptor) -> set[str]:
    """Fields of a request, those of the Grow within a stream's among them."""
    request: Any = method.input_type
    grow = request.fields_by_name.get("grow")
    return {
        named.name
        for kind in (request, *([grow.message_type] if grow else []))
        for named in (*kind.fields, *kind.oneofs)
    }


@pytest.fixture
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("no") as server:
        yield server


@pytest.fixture
async def process(server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[ServedProcess]:
    more = {
        "KATSURA_MEMORY_HEARTBEAT_S": "0.1",
        "KATSURA_MEMORY_COLLECT_EVERY_S": "0",
        "KATSURA_MEMORY_COLD_FOLDER": str(tmp_path / "cold"),
    }
    async with memory_process(server, TOKEN, tmp_path / "log", more) as process:
        yield process


@pytest.mark.parametrize("name", ["CreateTree", "Watch", "ImportTree", "GrowStream"])
@pytest.mark.parametrize("sent", [b"\xff\xff\xff", b"\x0a\x02\xed\xa0"], ids=["no-message", "no-utf-8"])
async def test_bytes_that_are_no_message_are_the_callers_mistake(
    process: ServedProcess, name: str, sent: bytes
) -> None:
    method = next(method for method in METHODS if method.name == name)
    async with open_channel(process.address) as channel:
        begin = getattr(channel, "_".join(styles_of(method)))(path_of(method))
        running = begin(iter([sent]) if method.client_streaming else sent, metadata=outgoing(CALL, TOKEN), timeout=60)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [each async for each in running] if method.server_streaming else await running
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert "cannot be read" in error.message


async def test_an_import_that_is_refused_says_why_however_much_of_it_is_on_its_way(process: ServedProcess) -> None:
    async with open_channel(process.address) as channel:
        memory = MemoryClient(Connection(channel, internal_token=TOKEN, call=CALL))
        await memory.create_tree(tree_id="taken")
        archive = b"".join([piece async for piece in memory.export_tree("taken")])

        async def pieces() -> AsyncIterator[bytes]:
            yield archive + bytes(4 << 20)

        for _ in range(20):
            with pytest.raises(AlreadyExistsError):
                await memory.import_tree(pieces(), tree_id="taken")


FULL = [pytest.param(seed, 1500, marks=[pytest.mark.soak, pytest.mark.timeout(900)]) for seed in range(2, 8)]


@pytest.mark.parametrize(("seed", "calls"), [(1, 800), *FULL])
async def test_no_message_breaks_the_service_or_a_tree(
    process: ServedProcess, tmp_path: Path, seed: int, calls: int
) -> None:
    async with open_channel(process.address) as channel:
        fuzz = Fuzz(channel, seed)
        try:
            for n in range(calls // TOGETHER):
                if n % NEW_TREE_EVERY == 0:
                    await fuzz.begin(f"begun.{n}")
                wild = fuzz.messages.random.choice((0.0, 0.0, 0.02, 0.1, 0.5))
                await asyncio.gather(*(fuzz.some(wild) for _ in range(TOGETHER)))
            assert await fuzz.check_trees() > calls // TOGETHER // NEW_TREE_EVERY // 2
        finally:
            for fault in (tmp_path / "log").read_text(errors="replace").split("by our own fault")[1:]:
                print(fault[:3000])
        codes = Counter[str]()
        for (_, code), count in fuzz.outcomes.items():
            codes[code] += count
        assert codes["OK"] > calls // 5, "else nothing is tried"
        print(f"{calls} calls: {sorted(codes.items())}")
