"""Steps that wait and what ends their waiting: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, KatsuraError, Reason, ResourceExhaustedError
from katsura.domain.ids import TreeId
from katsura.domain.trees import Effect, Resolution, Wait, WaitKind, request_of
from katsura.state.archive import Archived
from katsura.state.trees import WAITING_MAX, TreeRef, TreeStore
from katsura.testing.tree_suite import BIG, NO_REQUEST, grow, refused, revise, step

APPROVAL = Wait(WaitKind.APPROVAL, "the boss")


async def wait(store: TreeStore, ref: TreeRef, content: str, branch: str = "", **fields: object) -> int:
    new = step(content, wait=APPROVAL, **fields)
    return (await store.grow(ref, branch, None, [new], True, NO_REQUEST)).node_ids[0]


async def resume(store: TreeStore, ref: TreeRef, node: int, branch: str = "", head: int | None = None) -> int:
    new = step("yes", resolves=node, resolution=Resolution.DONE)
    return (await store.grow(ref, branch, head, [new], True, NO_REQUEST)).node_ids[0]


async def waiting(store: TreeStore, ref: TreeRef, branch: str = "") -> list[int]:
    found, nodes = await store.waiting(ref, branch)
    snapshot = await store.snapshot(ref, branch, BIG, 4, "", False)
    assert [n.node_id for n in nodes] == [s.node.node_id for s in snapshot.waiting]
    assert snapshot.branch == found
    return [n.node_id for n in nodes]


async def test_a_step_waits_until_another_resolves_it_once(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    first, second = await wait(store, ref, "deploy"), await wait(store, ref, "deploy")
    assert first != second, "steps that wait never merge"
    await grow(store, ref, "b")
    assert await waiting(store, ref) == [first, second]
    answer = await resume(store, ref, first)
    (node,) = await store.nodes(ref, [answer], BIG)
    assert (node.body.resolves, node.body.resolution) == (first, Resolution.DONE)  # type: ignore[union-attr]
    assert await waiting(store, ref) == [second]
    for wrong in (first, 1, answer, 99):
        error = await refused(FailedPreconditionError, Reason.NOT_WAITING, resume(store, ref, wrong))
        assert error.metadata == {"node": str(wrong)}
    await resume(store, ref, second)
    assert await waiting(store, ref) == []


async def test_each_path_waits_for_itself(store: TreeStore, ref: TreeRef) -> None:
    node = await wait(store, ref, "deploy")
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    await store.fork(ref, "", -1, "empty", NO_REQUEST)
    done = await resume(store, ref, node)
    later = await wait(store, ref, "again")
    assert await waiting(store, ref) == [later]
    assert await waiting(store, ref, "side") == [node], "I3: what resolved it is on the other path"
    assert await waiting(store, ref, "empty") == []
    revised = await revise(store, ref, done)
    assert await waiting(store, ref, revised.branch.name) == []
    back = await revise(store, ref, node)
    assert await waiting(store, ref, back.branch.name) == [node], "gone back to before it was resolved"
    await resume(store, ref, node, "side")
    await resume(store, ref, node)


async def test_effects_in_between_change_nothing_and_are_told_without_the_waits(store: TreeStore, ref: TreeRef) -> None:
    effect = step("paid", effect=Effect.IRREVERSIBLE)
    await store.grow(ref, "", None, [effect], False, NO_REQUEST)
    node = await wait(store, ref, "deploy")
    paid = (await store.grow(ref, "", None, [effect, step("b"), effect], False, NO_REQUEST)).node_ids
    assert await waiting(store, ref) == [node]
    retreat = await store.retreat(ref, "", None, 1)
    assert [e.node_id for e in retreat.effects] == [paid[2], paid[0]]
    both = await wait(store, ref, "order it", effect=Effect.IRREVERSIBLE)
    assert [e.node_id for e in (await store.retreat(ref, "", None, 1)).effects] == [both, paid[2], paid[0]]


async def test_of_two_who_resolve_one_wins(store: TreeStore, ref: TreeRef) -> None:
    node = await wait(store, ref, "deploy")
    asked = request_of("r", "resume")
    new = step("yes", resolves=node, resolution=Resolution.REFUSED)
    first = await store.grow(ref, "", node, [new], False, asked)
    assert await store.grow(ref, "", node, [new], False, asked) == first, "a repeated request resolves once"
    with pytest.raises(KatsuraError) as error:
        await resume(store, ref, node, head=node)
    assert error.value.reason in (Reason.HEAD_MOVED, Reason.NOT_WAITING)
    assert (await store.read(ref))[0].node_count == 2


async def test_so_many_steps_wait_at_once(store: TreeStore, ref: TreeRef) -> None:
    steps = [step(f"s{i}", wait=APPROVAL) for i in range(WAITING_MAX)]
    ids = (await store.grow(ref, "", None, steps, False, NO_REQUEST)).node_ids
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, wait(store, ref, "one more"))
    done = step("yes", resolves=ids[0], resolution=Resolution.DONE)
    await store.grow(ref, "", None, [done, step("one more", wait=APPROVAL)], False, NO_REQUEST)
    assert len(await waiting(store, ref)) == WAITING_MAX


async def test_waiting_survives_redaction_and_moving(store: TreeStore, ref: TreeRef) -> None:
    first, second = await wait(store, ref, "secret"), await wait(store, ref, "b")
    await resume(store, ref, second)
    await store.redact(ref, [first], NO_REQUEST)
    (node,) = await store.nodes(ref, [first], BIG)
    assert node.body.wait == Wait(WaitKind.APPROVAL, "[redacted]")  # type: ignore[union-attr]
    parts: list[Archived] = [part async for part in store.dump(ref)]

    async def all_parts():  # type: ignore[no-untyped-def]
        for part in parts:
            yield part

    copy = TreeRef(ref.tenant, TreeId("copy"))
    await store.restore(copy, all_parts())
    assert await waiting(store, copy) == await waiting(store, ref) == [first]
    await resume(store, copy, first)
    assert await waiting(store, copy) == []


async def test_a_subgoal_waits_for_its_end_and_whoever_repeats_a_request_gets_its_answer_whatever_the_head_is(
    store: TreeStore, ref: TreeRef
) -> None:
    request = request_of("b", "begin_subgoal", "it")
    new = step("Subgoal: it", wait=Wait(WaitKind.SUBGOAL, "it"), attributes={"criterion.a": ""})
    begun = await store.grow(ref, "", 0, [new], False, request)
    _, (node,) = await store.waiting(ref, "")
    assert node.body.wait == Wait(WaitKind.SUBGOAL, "it")  # type: ignore[union-attr]
    assert node.body.attributes == {"criterion.a": ""}  # type: ignore[union-attr]
    await grow(store, ref, "b")
    never = (1 << 53) - 1
    assert await store.grow(ref, "", never, [step("never written")], False, request) == begun
    await refused(
        ConflictError, Reason.HEAD_MOVED, store.grow(ref, "", never, [step("never written")], False, NO_REQUEST)
    )
    end = await resume(store, ref, begun.node_ids[0])
    assert (await waiting(store, ref), end) == ([], 3)
