"""Collecting what nobody can reach (I12): one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.errors import AlreadyExistsError, ConflictError, Reason
from katsura.domain.ids import TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Attachment, Effect, EventKind, Reference, Step, SummaryStatus, Wait, WaitKind
from katsura.state.collecting import Collected
from katsura.state.contents import TreeChange
from katsura.state.tree_records import stored_size
from katsura.state.trees import TreeRef, TreeStore
from katsura.testing.tree_suite import BIG, NEW, NO_REQUEST, compress, contents, grow, new_ref, refused, revise, step

NOTHING = Retention(abandoned=0, revisions=1)


async def collect(store: TreeStore, ref: TreeRef, keep: Retention = NOTHING, looks: int = 500) -> Collected:
    """Everything, call by call."""
    branches: list[str] = []
    nodes: list[int] = []
    for _ in range(200):
        part = await store.collect(ref, keep, looks)
        branches += part.branches
        nodes += part.nodes
        if part.done:
            return Collected(tuple(branches), tuple(nodes), True)  # type: ignore[arg-type]
    raise AssertionError("it never ends")


async def gone(store: TreeStore, ref: TreeRef) -> list[int]:
    nodes = await store.nodes(ref, range(1, (await store.read(ref))[0].node_count + 1), BIG)
    return [n.node_id for n in nodes if n.redacted]


async def test_what_only_an_abandoned_branch_held_goes_and_nothing_else(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await compress(store, ref)
    dead = step("dead", client_step_id="c", opaque=b"bytes")
    await store.grow(ref, "", None, [dead, step("dead too")], False, NO_REQUEST)
    await store.put_attachments(ref, 4, [Attachment("t", 0, "", b"x")], False)
    new = (await revise(store, ref, 2)).branch.name
    await grow(store, ref, "goes on")
    bytes_before = (await store.counted(ref)).usage.bytes
    revision = (await store.read(ref))[0].revision
    told = await store.collectable(ref, NOTHING, 500, 0)
    assert (told.branches, told.nodes, told.last, told.done) == (("main",), (4, 5), 7, True)
    assert told.bytes == sum(stored_size(node) for node in await store.nodes(ref, [4, 5], BIG)) > 0
    first, rest = await store.collectable(ref, NOTHING, 4, 0), await store.collectable(ref, NOTHING, 4, 4)
    assert (first.nodes, first.last, first.done, rest.nodes, rest.done) == ((4,), 4, False, (5,), True)
    assert (first.bytes + rest.bytes, first.branches) == (told.bytes, rest.branches)
    assert (await store.collectable(ref, Retention(abandoned=1), 500, 0)).branches == ()
    assert ((await store.read(ref))[0].revision, await gone(store, ref)) == (revision, []), "nothing was written"
    found = await collect(store, ref)
    assert (found.branches, found.nodes) == (("main",), (4, 5))
    assert (await store.collectable(ref, NOTHING, 500, 0)).nodes == ()
    last = (await store.read(ref))[0].revision
    event = await anext(store.watch(ref, "", last - 1, 5.0))
    assert (event.kind, event.node_ids) == (EventKind.COLLECTED, (4, 5))
    assert await gone(store, ref) == [4, 5]
    assert (await store.counted(ref)).usage.bytes < bytes_before
    assert await contents(store, ref) == ["a", "b", "goes on"]
    assert [b.name for b in (await store.read(ref))[1]] == [new]
    (node,) = await store.nodes(ref, [4], BIG)
    assert (node.body, node.attachments) == (Step("[redacted]"), ())
    assert await store.find_steps(ref, ["c"], "") == ()
    again = await store.grow(ref, "", None, [dead], True, NO_REQUEST)
    assert not again.merged[0], "nothing walks onto what is gone"
    await refused(AlreadyExistsError, Reason.BRANCH_EXISTS, store.fork(ref, "", 0, "main", NO_REQUEST))
    assert await collect(store, ref) == Collected((), (), True), "a second time finds nothing"


async def test_what_is_held_or_referred_to_or_had_an_effect_is_never_lost(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    taken = (await grow(store, ref, "found H-7")).node_ids[0]
    paid = (await store.grow(ref, "", None, [step("paid", effect=Effect.IRREVERSIBLE)], False, NO_REQUEST)).node_ids[0]
    await store.fork(ref, "", 0, "tree:child", NO_REQUEST, "", "child")
    kept = (await grow(store, ref, "behind the place")).node_ids[0]
    await revise(store, ref, 1)
    on = step("as found", references=(Reference(taken), Reference(kept)))
    await store.grow(ref, "", None, [on], False, NO_REQUEST)
    assert (await collect(store, ref)).branches == ("main",)
    assert await gone(store, ref) == []
    await store.release(ref, "tree:child", NO_REQUEST)
    last = (await store.read(ref))[1][-1].head
    await revise(store, ref, 1)
    assert set((await collect(store, ref)).nodes) >= {taken, kept, last}
    assert paid not in await gone(store, ref), "what was done outside was done"


async def test_the_newest_branches_and_revisions_stay(store: TreeStore, ref: TreeRef) -> None:
    for i in range(4):
        await grow(store, ref, f"try {i}", merge=False)
        await revise(store, ref, 0)
    assert (await collect(store, ref, Retention(1, 100))).nodes == ()
    left = [b.name for b in (await store.read(ref))[1]]
    assert left == ["b4", "b5"], "the default branch, and one that was abandoned"
    tree, _ = await store.read(ref)
    found = await collect(store, ref, Retention(1, tree.revision - 3))
    assert found.nodes == (1,), "nodes of revisions that are watched stay"


async def test_it_goes_on_where_it_stopped_while_others_write(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *(f"a{i}" for i in range(20)))
    await revise(store, ref, 10)
    await grow(store, ref, *(f"b{i}" for i in range(20)))
    first = await store.collect(ref, NOTHING, 8)
    assert (first.branches, first.nodes, first.done) == (("main",), (), False)
    second = await store.collect(ref, NOTHING, 8)
    await grow(store, ref, "meanwhile")
    rest = await collect(store, ref, looks=8)
    assert (*second.nodes, *rest.nodes) == tuple(range(11, 21))
    said = [f"a{i}" for i in range(10)] + [f"b{i}" for i in range(20)] + ["meanwhile"]
    assert await contents(store, ref) == said


async def test_summaries_of_what_stays_stay_and_so_does_what_waits(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    failed = await compress(store, ref, SummaryStatus.FAILED)
    pending = await compress(store, ref, SummaryStatus.PENDING)
    wait = Wait(WaitKind.TOOL, "x")
    await store.grow(ref, "", None, [step("w", wait=wait)], False, NO_REQUEST)
    back = (await revise(store, ref, 1)).branch.name
    await collect(store, ref)
    assert failed.node.node_id not in await gone(store, ref)
    assert pending.node.node_id not in await gone(store, ref)
    assert (await store.waiting(ref, back))[1] == ()


async def test_a_branch_that_is_owed_something_or_worked_on_stays(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    asked = Wait(WaitKind.APPROVAL, "the boss")
    await store.grow(ref, "", None, [step("may I", wait=asked)], False, NO_REQUEST)
    await revise(store, ref, 1)
    assert (await collect(store, ref)).branches == (), "what waits may still be resolved by a fork"
    await store.fork(ref, "main", 0, "again", NO_REQUEST)
    assert (await collect(store, ref)).branches == ("main",), "the fork holds it now"
    assert (await store.waiting(ref, "again"))[1] != ()


async def test_branches_go_by_age_however_few_there_are(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    left = (await revise(store, ref, 1)).abandoned
    assert left.left_ms > 0
    assert (await collect(store, ref, Retention(8, 1, 3600))).branches == ()
    assert (await store.read(ref))[1][0].left_ms == left.left_ms
    for i in range(3):  # the twin's clock counts calls
        await grow(store, ref, f"later {i}")
    assert (await collect(store, ref, Retention(0, 1, 3600))).branches == ("main",), "too many go whatever their age"


async def test_one_worker_at_a_time_collects_and_a_late_one_is_refused(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, *(f"a{i}" for i in range(20)))
    assert await store.claim_collecting(ref, NOTHING, "one", 3_600_000) == 0, "there is nothing to do"
    await revise(store, ref, 1)
    first = await store.claim_collecting(ref, NOTHING, "one", 3_600_000)
    assert first > 0
    assert await store.claim_collecting(ref, NOTHING, "two", 3_600_000) == 0
    await store.collect(ref, NOTHING, 8, first)
    again = await store.claim_collecting(ref, NOTHING, "one", 0)
    second = await store.claim_collecting(ref, NOTHING, "two", 3_600_000)
    assert first < again < second
    await refused(ConflictError, Reason.LEASE_LOST, store.collect(ref, NOTHING, 8, again))
    assert await store.claim_collecting(ref, NOTHING, "one", 1) == 0
    while not (await store.collect(ref, NOTHING, 8, second)).done:
        pass
    assert len(await gone(store, ref)) == 19


async def test_what_was_too_new_to_go_is_looked_for_once_more(store: TreeStore, ref: TreeRef) -> None:
    keep = Retention(0, 5)
    await grow(store, ref, "a", "b")
    await revise(store, ref, 1)
    assert (await collect(store, ref, keep)).branches == ("main",)
    assert await gone(store, ref) == []
    assert await store.claim_collecting(ref, keep, "one", 1) == 0
    for i in range(6):
        await grow(store, ref, f"later {i}")
    assert await store.claim_collecting(ref, keep, "one", 1) > 0
    await collect(store, ref, keep)
    assert 2 in await gone(store, ref)
    for i in range(8):
        await grow(store, ref, f"still later {i}")
    assert await store.claim_collecting(ref, keep, "one", 1) == 0, "nothing was left behind since"


async def test_retention_and_life_time_are_said_and_said_again(store: TreeStore, ref: TreeRef) -> None:
    keep = Retention(3, 50, 7200)
    made = await store.update(ref, TreeChange(retention=keep, ttl_s=3600), NO_REQUEST)
    assert (made.policy.retention, made.policy.ttl_s) == (keep, 3600)
    await store.update(ref, TreeChange(goal="another"), NO_REQUEST)
    tree, _ = await store.read(ref)
    assert tree.policy == made.policy
    assert (await store.update(ref, TreeChange(ttl_s=0), NO_REQUEST)).policy.ttl_s == 0
    other = TreeRef(ref.tenant, TreeId("other"))
    first, _ = await store.create(other, replace(NEW, policy=replace(NEW.policy, retention=keep)), NO_REQUEST)
    assert first.policy.retention == (await store.read(other))[0].policy.retention == keep


async def test_what_each_tree_keeps_is_read_by_the_page_and_of_trees_that_are_there(store: TreeStore) -> None:
    keep = Retention(1, 2, 3)
    tenant = new_ref().tenant
    refs = [TreeRef(tenant, TreeId(f"t{i}")) for i in range(5)]
    for i, ref in enumerate(refs):
        policy = replace(NEW.policy, retention=keep if i % 2 else None)
        await store.create(ref, replace(NEW, policy=policy), NO_REQUEST)
    await store.drop(refs[0])
    rests = step("rests", references=(Reference(1, tree_id="elsewhere"),))  # type: ignore[arg-type]
    await store.grow(refs[4], "", None, [rests], False, NO_REQUEST)
    found: list[tuple[str, Retention | None, bool]] = []
    token, more = "", True
    while more:
        page, token = await store.retentions(tenant, 2, token)
        found += page
        more = bool(token)
    assert sorted(found) == [("t1", keep, False), ("t2", None, False), ("t3", keep, False), ("t4", None, True)]
