"""The memory process over gRPC, on a real Valkey: what only the whole shows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from katsura.api.memory.v1 import memory_collect_pb2 as collect_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1 import memory_subgoals_pb2 as subgoals_pb
from katsura.api.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    KatsuraError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.rpc.status import from_rpc_error
from katsura.sdk.blocks import BlockClient, of_user
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.sdk.memory_structure import reference
from katsura.sdk.usage import UsageClient
from katsura.testing.process import ServedProcess, memory_process
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@pytest.fixture
async def process(server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[ServedProcess]:
    async with memory_process(server, TOKEN, tmp_path / "log", {"KATSURA_MEMORY_HEARTBEAT_S": "0.1"}) as process:
        yield process


@pytest.fixture
async def connection(process: ServedProcess) -> AsyncIterator[Connection]:
    channel = open_channel(process.address)
    yield Connection(channel, internal_token=TOKEN)
    await channel.close()


def client_of(connection: Connection, tenant: str) -> MemoryClient:
    call = CallContext(Tenant(TenantId(tenant), bytes(32)), internal=True)
    return MemoryClient(connection.acting_for(call))


async def test_an_agents_life_from_start_to_a_second_try(connection: Connection) -> None:
    memory = client_of(connection, "life")
    await memory.create_tree(tree_id="trip", goal="Book a room", pins=["at most 450 USD"])
    grown = await memory.grow("trip", [step("user", "Find a room in Kyoto."), step("assistant", "H-7: 900 USD")])
    assert list(grown.node_ids) == [1, 2]
    compressed = await memory.compress("trip", summary=tree_pb.SummaryBody(text="Found H-7 for 900 USD."))
    assert compressed.summary.summary.status == tree_pb.SUMMARY_STATUS_VALID
    assert [c.validator for c in compressed.checks] == ["fidelity", "outcome"]
    order = tree_pb.Step(role="assistant", content="booked H-7", effect=tree_pb.EFFECT_IRREVERSIBLE)
    await memory.grow("trip", [order], expected_head=2)
    revised = await memory.revise("trip", restore_after=2, reason="too dear", expected_head=4)
    assert [e.node_id for e in revised.standing_effects] == [4]
    await memory.grow("trip", [step("assistant", "H-8: 90 USD")])
    context = await memory.assemble_context("trip", budget_tokens=2000, reserve_tokens=100)
    assert [(s.kind, s.node_id) for s in context.segments] == [
        (pb.SEGMENT_KIND_PIN, 0),
        (pb.SEGMENT_KIND_SUMMARY, 3),
        (pb.SEGMENT_KIND_HINT, 5),
        (pb.SEGMENT_KIND_STEP, 6),
    ]
    assert context.total_tokens == sum(s.token_count for s in context.segments) <= 1900
    path = await memory.get_whole_path("trip")
    assert [n.step.content for n in path] == ["Find a room in Kyoto.", "H-7: 900 USD", "H-8: 90 USD"]
    tree = await memory.get_tree("trip")
    assert [(b.name, b.state) for b in tree.branches] == [
        ("main", tree_pb.BRANCH_STATE_ABANDONED),
        ("b2", tree_pb.BRANCH_STATE_ACTIVE),
    ]
    assert tree.tree.default_branch == "b2"
    assert tree.tree.create_time.seconds > 1_700_000_000
    assert [t.tree_id for t in (await memory.list_trees()).trees] == ["trip"]
    await memory.update_tree("trip", set_labels={"team": "red"})
    assert [t.tree_id for t in (await memory.list_trees(labels={"team": "red"})).trees] == ["trip"]
    assert not (await memory.list_trees(labels={"team": "blue"})).trees


async def test_blocks_and_bytes_beside_nodes_over_grpc(connection: Connection) -> None:
    call = CallContext(Tenant(TenantId("blocks"), bytes(32)), internal=True)
    blocks = BlockClient(connection.acting_for(call))
    ada = of_user("ada")
    written = await blocks.put(ada, "prefs/seat", b"aisle", attributes={"kind": "pref"}, expected_version=0)
    assert (written.version, written.media_type) == (1, "text/plain")
    with pytest.raises(ConflictError):
        await blocks.put(ada, "prefs/seat", b"window", expected_version=0)
    await blocks.put(ada, "prefs/seat", b"window", media_type="text/x")
    assert [b.value for b in await blocks.history(ada, "prefs/seat")] == [b"window", b"aisle"]
    assert [b.name for b in (await blocks.list_page(ada, prefix="prefs/", query="WINDOW")).blocks] == ["prefs/seat"]
    assert not (await blocks.list_page(ada, attributes={"kind": "pref"})).blocks
    assert await blocks.delete(ada, "prefs/seat", forget=True)
    with pytest.raises(NotFoundError):
        await blocks.get(ada, "prefs/seat")

    memory = client_of(connection, "blocks")
    await memory.create_tree(tree_id="t")
    await memory.grow("t", [step("user", "checkpoint 1", client_step_id="c1"), step("user", "secret 4711")])
    write = tree_pb.Attachment(task="task", index=-1, media_type="msgpack", data=b"\x00")
    assert list((await memory.put_attachments("t", 1, [write])).written) == [True]
    (found,) = await memory.find_steps("t", ["c1"])
    assert (found.branch, found.node.node_id, list(found.node.attachments)) == ("main", 1, [write])
    assert [h.node.node_id for h in (await memory.search("t", "4711")).hits] == [2]
    assert await memory.redact("t", [2]) == [2]
    nodes = (await memory.list_nodes("t")).nodes
    assert [(n.node_id, n.redacted) for n in nodes] == [(2, True), (1, False)]
    tree = await memory.update_tree("t", goal="new", add_pins=["p"], set_labels={"a": "b"})
    assert (tree.goal, list(tree.pins), dict(tree.labels)) == ("new", ["p"], {"a": "b"})
    assert [b.name for b in (await memory.list_branches("t")).branches] == ["main"]
    await memory.set_slot("t", "city", "Seattle")
    replaced = await memory.set_slot("t", "city", "Portland", note="cheaper")
    assert (replaced.slot.relation, replaced.slot.previous) == (tree_pb.RELATION_REPLACE, replaced.node_id - 1)
    await memory.set_slot("t", "city", relation=tree_pb.RELATION_ROLLBACK)
    assert await memory.get_slots("t") == {"city": "Seattle"}
    assert len(await memory.slot_history("t", "city")) == 3
    await memory.fork("t", new_branch="sub")
    await memory.grow("t", [step("assistant", "sub-agent: H-9")], branch="sub")
    await memory.set_slot("t", "room", "H-9", branch="sub")
    difference = await memory.diff("t", "sub")
    assert (difference.common_node, difference.theirs_count, difference.ours_count) == (2, 1, 0)
    assert [(d.key, d.HasField("ours")) for d in difference.slots] == [("room", False)]
    merged = await memory.merge("t", "sub", expected_head=2)
    assert ("H-9" in merged.steps[0].step.content, merged.slots[0].slot.value) == (True, "H-9")
    await memory.redact("t", [merged.slots[0].node_id])
    context = await memory.assemble_context("t", budget_tokens=500)
    assert [s.content for s in context.segments if s.kind == pb.SEGMENT_KIND_SLOT] == [
        "[value of city] Seattle",
        "[value of room] [redacted]",
    ]


async def test_a_tree_goes_out_and_in_over_grpc(connection: Connection) -> None:
    memory = client_of(connection, "archive")
    await memory.create_tree(tree_id="t", goal="goal", labels={"a": "b"})
    await memory.grow("t", [step("user", "x" * 1000 + str(i)) for i in range(200)])
    await memory.compress("t")
    pieces = [piece async for piece in memory.export_tree("t")]
    archive = b"".join(pieces)

    async def cut() -> AsyncIterator[bytes]:
        for at in range(0, len(archive), 70_001):
            yield archive[at : at + 70_001]

    imported = await memory.import_tree(cut(), tree_id="copy")
    verified = await memory.verify_tree("copy")
    assert (verified.node_count, list(verified.mismatches)) == (201, [])
    assert imported.root_digest == verified.root_digest == (await memory.verify_tree("t")).root_digest
    assert dict(imported.tree.labels) == {"a": "b"}
    assert {t.tree_id for t in (await memory.list_trees()).trees} == {"t", "copy"}
    with pytest.raises(AlreadyExistsError):
        await memory.import_tree(cut(), tree_id="copy")
    archive = archive[:-20]
    with pytest.raises(InvalidArgumentError):
        await memory.import_tree(cut(), tree_id="broken")
    with pytest.raises(NotFoundError):
        await memory.get_tree("broken")
    await memory.create_tree(tree_id="broken")


async def test_watch_streams_commits_and_heartbeats_over_grpc(connection: Connection) -> None:
    memory = client_of(connection, "watch")
    await memory.create_tree(tree_id="t")
    events = memory.watch("t")
    assert (await anext(events)).kind == pb.EVENT_KIND_TREE_CREATED
    await memory.grow("t", [step("user", "a")])
    grown = await anext(events)
    while grown.kind == pb.EVENT_KIND_HEARTBEAT:
        grown = await anext(events)
    assert (grown.kind, list(grown.node_ids)) == (pb.EVENT_KIND_GROWN, [1])
    assert (await anext(events)).kind == pb.EVENT_KIND_HEARTBEAT
    await events.aclose()
    await memory.delete_tree("t")
    resumed = memory.watch("t", resume_token=grown.resume_token)
    with pytest.raises(NotFoundError):
        await anext(resumed)


async def test_watch_tells_only_kinds_asked_for_and_brings_their_content(connection: Connection) -> None:
    memory = client_of(connection, "kinds")
    await memory.create_tree(tree_id="t", labels={"team": "a"})
    large = "x" * (1 << 20)
    await memory.grow("t", [step("user", "a"), step("user", "b")])
    await memory.set_slot("t", "city", "Kyoto")
    for size in range(4):
        await memory.grow("t", [step("user", f"{size} {large[10:]}")])
    kinds = (pb.EVENT_KIND_GROWN,)
    alone = memory.watch("t", kinds=kinds, include_content=True)
    many = memory.watch_trees(labels={"team": "a"}, kinds=kinds, include_content=True)
    for events in (alone, many):
        found: list[pb.WatchResponse] = []
        async for event in events:
            if event.kind != pb.EVENT_KIND_HEARTBEAT:
                found.append(event)
            if len(found) == 5:
                break
        assert {event.kind for event in found} == {pb.EVENT_KIND_GROWN}
        assert [node.step.content for node in found[0].nodes] == ["a", "b"]
        assert all(len(event.nodes) <= 1 for event in found[1:]), "what does not fit in one message is left out"
        assert [list(event.node_ids) for event in found[1:]] == [[4], [5], [6], [7]]
        await events.aclose()


async def test_another_tenants_tree_answers_exactly_as_an_unknown_one(connection: Connection) -> None:
    await client_of(connection, "owner").create_tree(tree_id="secret")
    thief = client_of(connection, "thief")
    messages = set()
    for name in ("secret", "nothere", "", "bad name/{}"):
        for attempt in (
            thief.get_tree(name),
            thief.grow(name, [step("user", "x")]),
            thief.assemble_context(name, budget_tokens=100),
            thief.get_nodes(name, [1]),
            thief.delete_tree(name),
            anext(thief.watch(name)),
            anext(aiter(thief.watch_trees([name]))),
        ):
            with pytest.raises(NotFoundError) as caught:
                await attempt
            assert caught.value.reason is Reason.TREE_NOT_FOUND
            messages.add(caught.value.message.replace(repr(name), "NAME"))
    assert len(messages) == 1


async def test_without_a_tenant_nothing_is_answered(connection: Connection) -> None:
    with pytest.raises(UnauthenticatedError):
        await MemoryClient(connection).get_tree("t")


BAD_REQUESTS: list[tuple[str, object, type[KatsuraError], str | None]] = [
    ("Grow", pb.GrowRequest(tree_id="t", unconditional=True), InvalidArgumentError, "steps"),
    ("Grow", pb.GrowRequest(tree_id="t", steps=[tree_pb.Step(role="user", content="x")]),
     InvalidArgumentError, "expected_head"),
    ("Grow", pb.GrowRequest(tree_id="t", unconditional=True, steps=[tree_pb.Step(role="user", kind=99)]),
     InvalidArgumentError, "steps[0].kind"),
    ("Grow", pb.GrowRequest(tree_id="t", branch="no", unconditional=True, steps=[step("user", "x")]),
     NotFoundError, "branch"),
    ("Grow", pb.GrowRequest(tree_id="t", unconditional=True, dedupe=9, steps=[step("user", "x")]),
     InvalidArgumentError, "dedupe"),
    ("Compress", pb.CompressRequest(tree_id="t", unconditional=True, on_pending=7), InvalidArgumentError,
     "on_pending"),
    ("Compress", pb.CompressRequest(tree_id="t", unconditional=True, summary_body=tree_pb.SummaryBody()),
     InvalidArgumentError, "summary_body.text"),
    ("Compress", pb.CompressRequest(tree_id="t", unconditional=True), FailedPreconditionError, None),
    ("Maintain", pb.MaintainRequest(tree_id="t"), NotFoundError, "summary_id"),
    ("Revise", pb.ReviseRequest(tree_id="t", expected_head=3), ConflictError, None),
    ("Fork", pb.ForkRequest(tree_id="t", at_node=44), NotFoundError, None),
    ("AssembleContext", pb.AssembleContextRequest(tree_id="t"), InvalidArgumentError, "budget_tokens"),
    ("AssembleContext", pb.AssembleContextRequest(tree_id="t", budget_tokens=1), OutOfRangeError,
     "budget_tokens"),
    ("AttachTokens", pb.AttachTokensRequest(tree_id="t"), InvalidArgumentError, "tokenizer_digest"),
    ("GetNodes", pb.GetNodesRequest(tree_id="t", node_ids=[0]), InvalidArgumentError, "node_ids[0]"),
    ("GetPath", pb.GetPathRequest(tree_id="t", page_size=-1), InvalidArgumentError, "page_size"),
    ("CreateTree", pb.CreateTreeRequest(tree_id="t", request_id="other"), AlreadyExistsError, "tree_id"),
    ("CreateTree", pb.CreateTreeRequest(policy=tree_pb.TreePolicy(durability=tree_pb.DURABILITY_STRICT)),
     FailedPreconditionError, "policy.durability"),
    ("BeginSubgoal", subgoals_pb.BeginSubgoalRequest(tree_id="t", unconditional=True), InvalidArgumentError, "title"),
    ("EndSubgoal", subgoals_pb.EndSubgoalRequest(tree_id="t"), InvalidArgumentError, "expected_head"),
    ("EndSubgoal", subgoals_pb.EndSubgoalRequest(tree_id="t", unconditional=True), FailedPreconditionError, None),
    ("CollectGarbage", collect_pb.CollectGarbageRequest(tree_id="t", after_node=1), InvalidArgumentError, "after_node"),
    ("CollectGarbage", collect_pb.CollectGarbageRequest(tree_id="t", dry_run=True, after_node=-1),
     InvalidArgumentError, "after_node"),
    ("ListTrees", pb.ListTreesRequest(page_token="x"), InvalidArgumentError, "page_token"),
]  # fmt: skip


async def test_bad_input_names_its_field(connection: Connection) -> None:
    bound = connection.acting_for(CallContext(Tenant(TenantId("bad"), bytes(32)), internal=True))
    await MemoryClient(bound).create_tree(tree_id="t", goal="a goal of some length")
    stub = MemoryServiceStub(bound.channel)
    for method, message, kind, field in BAD_REQUESTS:
        with pytest.raises(KatsuraError) as caught:
            await bound.unary(getattr(stub, method), method, message)
        assert (type(caught.value), caught.value.field) == (kind, field), (method, message, caught.value)


async def test_a_restarted_service_goes_on_with_the_same_trees(
    server: EmbeddedStore, process: ServedProcess, connection: Connection
) -> None:
    memory = client_of(connection, "restart")
    await memory.create_tree(tree_id="t")
    await memory.grow("t", [step("user", "before")])
    await process.kill()
    await process.start()
    await memory.grow("t", [step("user", "after")])
    assert [n.step.content for n in await memory.get_whole_path("t")] == ["before", "after"]


async def test_sigterm_ends_the_process_cleanly(process: ServedProcess) -> None:
    assert await process.terminate() == 0


async def test_reads_by_a_plain_client_fit_its_default_message_limit(
    process: ServedProcess, connection: Connection
) -> None:
    memory = client_of(connection, "plain")
    await memory.create_tree(tree_id="t")
    for i in range(6):
        await memory.grow("t", [step("user", f"{i}" * 1_000_000)])
    async with grpc.aio.insecure_channel(process.address) as channel:
        call = CallContext(Tenant(TenantId("plain"), bytes(32)), internal=True)
        plain = MemoryClient(Connection(channel, internal_token=TOKEN, call=call))
        page = await plain.get_path("t", page_size=100)
        assert 0 < len(page.nodes) < 6
        assert len(await plain.get_whole_path("t")) == 6
        with pytest.raises(OutOfRangeError):
            await plain.get_nodes("t", [1, 2, 3, 4, 5])


async def test_many_clients_of_many_trees_lose_and_double_nothing(connection: Connection) -> None:
    memory = client_of(connection, "many")

    async def one(tree: int) -> None:
        await memory.create_tree(tree_id=f"t{tree}")
        for i in range(5):
            await asyncio.gather(*(memory.grow(f"t{tree}", [step("user", f"{i}.{k}")]) for k in range(4)))

    await asyncio.gather(*(one(tree) for tree in range(8)))
    for tree in range(8):
        path = await memory.get_whole_path(f"t{tree}")
        assert sorted(n.step.content for n in path) == sorted(f"{i}.{k}" for i in range(5) for k in range(4))


async def test_usage_is_told_by_tree_and_agent_and_quotas_refuse_with_their_name(
    server: EmbeddedStore, tmp_path: Path
) -> None:
    more = {
        "KATSURA_MEMORY_QUOTA_NODES": "3",
        "KATSURA_MEMORY_QUOTA_TREES": "1",
    }
    async with memory_process(server, TOKEN, tmp_path / "log", more, name="metered") as process:
        channel = open_channel(process.address)
        connection = Connection(channel, internal_token=TOKEN)
        memory = client_of(connection, "metered")
        usage = UsageClient(connection.acting_for(CallContext(Tenant(TenantId("metered"), bytes(32)), internal=True)))
        await memory.create_tree(tree_id="t")
        cost = tree_pb.Cost(prompt_tokens=100, completion_tokens=5)
        with pytest.raises(ResourceExhaustedError, match="0 of 3 are used, and this adds 4"):
            await memory.grow("t", [step("user", "too many")] * 4)
        with pytest.raises(ResourceExhaustedError, match="quota nodes: 0 of 3 are used, and this adds 4"):
            await anext(memory.grow_stream("t", all_at_once([step("user", "too many")] * 4), expected_head=0))
        await memory.grow(
            "t", [step("assistant", "a", agent_id="ada", cost=cost), step("user", "b"), step("user", "c")]
        )
        of_tree = await usage.of_tree("t")
        assert (of_tree.usage.nodes, of_tree.agents[0].agent_id, of_tree.agents[0].prompt_tokens) == (3, "ada", 100)
        with pytest.raises(ResourceExhaustedError) as caught:
            await memory.grow("t", [step("user", "d")])
        assert caught.value.reason is Reason.QUOTA_EXCEEDED
        assert caught.value.metadata == {"quota": "nodes", "used": "3", "limit": "3", "adds": "1"}
        with pytest.raises(ResourceExhaustedError, match="quota trees: 1 of 1"):
            await memory.fork("t", new_tree_id="t2")
        await memory.fork("t")
        exact = await usage.usage(recount=True)
        assert (exact.usage, exact.quotas.nodes) == (of_tree.usage, 3)
        assert list(exact.agents) == list(of_tree.agents)
        await memory.compress("t")
        await memory.delete_tree("t")
        assert (await usage.usage()).usage.nodes == 0
        await channel.close()


async def test_what_a_summary_stands_for_is_recalled_within_its_budget(connection: Connection) -> None:
    memory = client_of(connection, "recall")
    await memory.create_tree(tree_id="t")
    for hotel, colour in (("H-7", "red"), ("H-8", "blue")):
        texts = (f"Look at hotel {hotel}.", f"It is painted {colour}.", f"{hotel} is full.")
        await memory.grow("t", [step("user", text) for text in texts])
        await memory.compress("t")
    found = await memory.recall("t", "is H-8 painted", budget_tokens=200, most_summaries=1)
    assert [s.content for s in found.segments][:2] == ["Look at hotel H-8.", "It is painted blue."]
    assert len(found.summaries) == 1
    assert found.total_tokens <= 200


async def test_subgoals_over_the_wire(connection: Connection) -> None:
    memory = client_of(connection, "subgoals")
    await memory.create_tree(tree_id="trip", goal="a trip")
    await memory.grow("trip", [step("user", "Find a room.")])
    outer = await memory.begin_subgoal("trip", "book a room")
    begun = await memory.begin_subgoal("trip", "find one", ["cheap", "free"], expected_head=2, request_id="b")
    assert (begun.subgoal_id, begun.boundary_node, begun.parent_subgoal) == (3, outer.subgoal_id, 2)
    cheap = {"criterion.cheap": "pass"}
    await memory.grow("trip", [step("tool", "H-8: 90 USD", attributes=cheap)])
    with pytest.raises(FailedPreconditionError) as early:
        await memory.end_subgoal("trip", outer.subgoal_id)
    assert (early.value.reason, early.value.metadata["subgoal"]) == (Reason.SUBGOAL_OPEN, "3")
    ended = await memory.end_subgoal("trip", results={"free": True}, request_id="e")
    assert await memory.end_subgoal("trip", results={"free": True}, request_id="e") == ended
    assert (ended.subgoal_id, ended.outcome, ended.step.step.resolves) == (3, tree_pb.VERDICT_PASS, 3)
    assert (ended.summary.summary.first_covered, ended.summary.summary.last_covered) == (3, 5)
    assert ended.summary.summary.outcome == tree_pb.VERDICT_PASS
    assert ended.revision == (await memory.get_tree("trip")).tree.revision
    (waiting,) = await memory.list_waiting("trip")
    assert (waiting.node.node_id, waiting.node.step.wait.kind) == (2, tree_pb.WAIT_KIND_SUBGOAL)
    repeated = await memory.begin_subgoal("trip", "find one", ["cheap", "free"], expected_head=2, request_id="b")
    assert repeated == begun
    last = await memory.end_subgoal("trip", summary=tree_pb.SummaryBody(text="One was found and not booked."))
    context = await memory.assemble_context("trip", budget_tokens=2000, expand=[ended.summary.node_id, 999])
    assert [s.node_id for s in context.segments if s.kind == pb.SEGMENT_KIND_STEP][:3] == [3, 4, 5]
    assert [(d.node_id, d.reason) for d in context.dropped if d.reason == "not-shown"] == [(999, "not-shown")]
    assert (last.outcome, last.branch.boundary) == (tree_pb.VERDICT_UNKNOWN, last.step.node_id)
    with pytest.raises(FailedPreconditionError) as late:
        await memory.end_subgoal("trip")
    assert late.value.reason is Reason.NOT_WAITING


async def test_sub_agents_references_waits_and_collecting_work_over_the_wire(connection: Connection) -> None:
    memory = client_of(connection, "structure")
    await memory.create_tree(tree_id="trip", goal="a trip")
    await memory.grow("trip", [step("user", "Find a room.")])
    wait = tree_pb.Wait(kind=tree_pb.WAIT_KIND_APPROVAL, what="450 USD")
    rests = [reference(1, tree_pb.REFERENCE_KIND_REUSES)]
    await memory.grow("trip", [step("assistant", "May I?", wait=wait, references=rests)])
    (waiting,) = await memory.list_waiting("trip")
    assert (waiting.branch, waiting.node.node_id, waiting.node.step.wait.what) == ("main", 2, "450 USD")
    resumed = await memory.resume_step("trip", 2, expected_head=2, step=step("user", "Yes."))
    assert (resumed.node.step.resolves, resumed.node.step.resolution) == (2, tree_pb.RESOLUTION_DONE)
    made = await memory.fork("trip", new_tree_id="rooms", goal="a room", agent_id="scout")
    assert (made.tree.origin.tree_id, made.tree.origin.node_id, made.tree.agent_id) == ("trip", 3, "scout")
    await memory.grow("rooms", [step("assistant", "H-8: 90 USD")])
    context = await memory.assemble_context("rooms", budget_tokens=500)
    assert [s.tree_id for s in context.segments] == ["", "trip", "trip", "trip", ""]
    merged = await memory.merge("trip", "", source_tree_id="rooms")
    assert [(r.tree_id, r.node_id) for r in merged.steps[0].references] == [("rooms", 1)]
    with pytest.raises(FailedPreconditionError):
        await memory.delete_tree("trip")
    await memory.invalidate("trip", [1])
    context = await memory.assemble_context("trip", budget_tokens=500)
    assert [s.node_id for s in context.stale_steps] == [2, 1]
    assert [n.node_id for n in (await memory.list_dependents("trip", 1)).nodes] == [2]
    await memory.revalidate("trip", [1, 2])
    assert (await memory.get_tree("trip")).tree.stale_count == 0
    await memory.add_references("trip", 3, [reference(1)])
    assert not (await memory.remove_references("trip", 3, [1])).references
    await memory.revise("trip", restore_after=1, reason="too dear")
    await memory.delete_tree("rooms")
    told = await memory.garbage("trip", keep_abandoned=0, keep_revisions=1)
    assert (list(told.dropped_branches), list(told.collected_node_ids), told.done) == (["main"], [2, 3, 4], True)
    assert (told.bytes > 0, told.next_after_node) == (True, 0)
    assert (await memory.garbage("trip", keep_abandoned=0, keep_revisions=1, page_size=2)).next_after_node == 2
    collected = await memory.collect_garbage("trip", keep_abandoned=0, keep_revisions=1)
    assert (list(collected.dropped_branches), list(collected.collected_node_ids), collected.done) == (
        ["main"],
        [2, 3, 4],
        True,
    )
    await memory.delete_tree("trip")


async def all_at_once(steps: list[tree_pb.Step]) -> AsyncIterator[list[tree_pb.Step]]:
    yield steps


async def batches_of(*contents: str) -> AsyncIterator[list[tree_pb.Step]]:
    for content in contents:
        yield [step("user", content)]


async def test_a_stream_grows_a_branch_without_waiting_for_answers(connection: Connection) -> None:
    memory = client_of(connection, "stream")
    await memory.create_tree(tree_id="t")
    words = [f"step {i}" for i in range(40)]
    answers = [answer async for answer in memory.grow_stream("t", batches_of(*words), expected_head=0, in_flight=8)]
    assert [list(answer.node_ids) for answer in answers] == [[i] for i in range(1, 41)]
    assert [node.step.content for node in await memory.get_whole_path("t")] == words


async def test_another_writer_ends_a_stream_that_expects_its_own_head(connection: Connection) -> None:
    memory = client_of(connection, "stream-cas")
    await memory.create_tree(tree_id="t")

    async def batches() -> AsyncIterator[list[tree_pb.Step]]:
        yield [step("user", "ours")]
        await seen.wait()
        yield [step("user", "too late")]

    seen = asyncio.Event()
    stream = memory.grow_stream("t", batches(), expected_head=0)
    assert (await anext(stream)).branch.head == 1
    await memory.grow("t", [step("user", "theirs")], expected_head=1)
    seen.set()
    with pytest.raises(ConflictError) as caught:
        await anext(stream)
    assert (caught.value.reason, caught.value.metadata["head"]) == (Reason.HEAD_MOVED, "2")
    assert [node.step.content for node in await memory.get_whole_path("t")] == ["ours", "theirs"]


async def test_a_stream_names_one_branch(connection: Connection) -> None:
    bound = connection.acting_for(CallContext(Tenant(TenantId("one-branch"), bytes(32)), internal=True))
    await MemoryClient(bound).create_tree(tree_id="t")
    for other, field in (({"tree_id": "u"}, "tree_id"), ({"tree_id": "t", "branch": "b"}, "branch")):
        grow = {"unconditional": True, "steps": [step("user", "x")]}
        sent = [pb.GrowRequest(tree_id="t", **grow), pb.GrowRequest(**other, **grow)]  # type: ignore[arg-type]
        call = MemoryServiceStub(bound.channel).GrowStream(
            iter([pb.GrowStreamRequest(grow=one) for one in sent]), metadata=bound.metadata()
        )
        assert (await call.read()).grow.node_ids
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert from_rpc_error(caught.value).field == field


async def test_a_stream_outlives_kills_of_the_service_and_writes_each_batch_once(
    process: ServedProcess, connection: Connection
) -> None:
    memory = client_of(connection, "stream-kill")
    await memory.create_tree(tree_id="t")
    words = [f"step {i}" for i in range(120)]
    heads = []
    async for answer in memory.grow_stream("t", batches_of(*words), expected_head=0, in_flight=16):
        heads.append(answer.branch.head)
        if len(heads) in (10, 60):
            await process.kill()
            await process.start()
    assert heads == list(range(1, 121))
    assert [node.step.content for node in await memory.get_whole_path("t")] == words


async def test_a_stream_that_has_nothing_to_say_does_not_mind_a_restart(
    process: ServedProcess, connection: Connection
) -> None:
    call = CallContext(Tenant(TenantId("stream-idle"), bytes(32)), internal=True)
    memory = MemoryClient(connection.acting_for(call))
    await memory.create_tree(tree_id="t")

    async def batches() -> AsyncIterator[list[tree_pb.Step]]:
        yield [step("user", "before")]
        await restarted.wait()
        yield [step("user", "after")]

    restarted = asyncio.Event()
    impatient = memory.acting_for(call, timeout_s=0.0)
    stream = impatient.grow_stream("t", batches(), expected_head=0)
    assert (await anext(stream)).branch.head == 1
    following = asyncio.create_task(anext(stream))
    await process.kill()
    await process.start()
    await asyncio.wait_for(connection.channel.channel_ready(), 60)
    restarted.set()
    assert (await following).branch.head == 2


async def test_what_the_source_of_a_stream_raises_comes_after_its_answers(connection: Connection) -> None:
    memory = client_of(connection, "stream-source")
    await memory.create_tree(tree_id="t")

    async def batches() -> AsyncIterator[list[tree_pb.Step]]:
        yield [step("user", "kept")]
        raise LookupError("the agent died")

    stream = memory.grow_stream("t", batches())
    assert (await anext(stream)).branch.head == 1
    with pytest.raises(LookupError, match="the agent died"):
        await anext(stream)
