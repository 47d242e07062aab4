"""Tasks for workers outside: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, Reason
from katsura.domain.trees import Judgement, Node, Request, Step, Summary, SummaryBody, SummaryStatus, cover_digest
from katsura.domain.work import ATTEMPTS_MAX, EXTERNAL, Fence, WorkItem, WorkKind
from katsura.state import keys
from katsura.state.connect import Store
from katsura.state.queue import SEGMENT_STEPS_MAX
from katsura.state.trees import TreeRef, TreeStore, Written
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import BIG, LIMITS, NEW, NO_REQUEST, compress, grow, new_ref, refused, revise

ANY, COMPRESS, VALIDATE = WorkKind.UNSPECIFIED, WorkKind.COMPRESS, WorkKind.VALIDATE
AWAITED = Judgement(status=SummaryStatus.PENDING, required=(EXTERNAL,))
LONG_MS = 600_000


def fence_of(item: WorkItem) -> Fence:
    return Fence(item.work_id, item.token, item.worker)


async def claim(store: TreeStore, ref: TreeRef, worker: str = "w1", lease_ms: int = LONG_MS) -> WorkItem:
    """The one task that there is. One whose lease of a millisecond has just begun is asked for until it has ended."""
    while True:
        found = await store.claim(ref, ANY, worker, 9, lease_ms)
        if found:
            (item,) = found
            return item


async def write(
    store: TreeStore, ref: TreeRef, judgement: Judgement, fence: Fence | None, request: Request = NO_REQUEST
) -> Written:
    cover = await store.cover(ref, "", None, 0)
    covered = (await store.path(ref, "", cover.last, 1000, BIG)).nodes[-cover.count :]
    digest = cover_digest([n.content_hash for n in covered])
    summary = Summary(
        0, covered[0].node_id, cover.last, cover.count, digest, SummaryBody("said"), "w1", cover.versions + 1, 9, 4
    )
    return await store.summarise(ref, cover, None, summary, judgement, request, fence)


async def test_a_segment_is_asked_for_claimed_and_written(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    asked = await store.schedule(ref, COMPRESS, "", 0, "be brief")
    assert (asked.work_id, asked.kind, asked.branch, asked.attempts) == ("compress:main", COMPRESS, "main", 0)
    assert await store.schedule(ref, COMPRESS, "main", 0, "again") == asked
    assert await store.claim(ref, VALIDATE, "w1", 9, LONG_MS) == ()
    item = await claim(store, ref)
    assert (item.base, item.last, item.attempts, item.worker, item.reason) == (0, 2, 1, "w1", "be brief")
    assert item.token > 0
    assert await store.claim(ref, ANY, "w2", 9, LONG_MS) == ()
    written = await write(store, ref, Judgement(status=SummaryStatus.VALID), fence_of(item))
    assert written.branch.summary_head == written.node.node_id
    assert await store.work(ref) == ()


async def test_a_lease_that_ended_is_taken_over_and_the_late_worker_is_refused(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    late = await claim(store, ref, "late", lease_ms=1)
    heir = await claim(store, ref, "heir")
    assert (heir.token > late.token, heir.attempts, heir.worker) == (True, 2, "heir")
    valid = Judgement(status=SummaryStatus.VALID)
    for attempt in (
        write(store, ref, valid, fence_of(late)),
        store.renew(ref, fence_of(late), LONG_MS),
        store.give_back(ref, fence_of(late), "slow", 0),
        store.held(ref, fence_of(late)),
    ):
        error = await refused(ConflictError, Reason.LEASE_LOST, attempt)
        assert "another worker" in error.message
    assert (await store.read(ref))[1][0].summary_head == 0
    await write(store, ref, valid, fence_of(heir))
    await grow(store, ref, "b")
    again = await refused(ConflictError, Reason.LEASE_LOST, write(store, ref, valid, fence_of(heir)))
    assert "it is done" in again.message


async def test_a_late_worker_that_nobody_replaced_is_taken(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    late = await claim(store, ref, lease_ms=1)
    assert (await store.held(ref, fence_of(late))).token == late.token
    await write(store, ref, Judgement(status=SummaryStatus.VALID), fence_of(late))
    assert await store.work(ref) == ()


async def test_another_worker_cannot_use_a_token_that_it_saw(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref)
    await refused(ConflictError, Reason.LEASE_LOST, store.held(ref, Fence(item.work_id, item.token, "w2")))


async def test_a_worker_that_claims_again_cannot_write_by_its_older_claim(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    older = await claim(store, ref, lease_ms=1)
    newer = await claim(store, ref)
    assert (older.worker, newer.worker) == ("w1", "w1")
    await refused(ConflictError, Reason.LEASE_LOST, store.renew(ref, fence_of(older), LONG_MS))
    assert await store.held(ref, fence_of(newer)) == newer


async def test_a_renewed_lease_is_not_taken_over(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref, lease_ms=1)
    renewed = await store.renew(ref, fence_of(item), LONG_MS)
    assert renewed.lease_end_ms > item.lease_end_ms
    assert await store.claim(ref, ANY, "w2", 9, LONG_MS) == ()


async def test_what_fails_too_often_is_given_up_until_it_is_scheduled_again(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    for attempt in range(1, ATTEMPTS_MAX + 1):
        item = await claim(store, ref, f"w{attempt}")
        back = await store.give_back(ref, fence_of(item), f"garbage {attempt}", 0)
        assert (back.attempts, back.worker, back.given_up) == (attempt, "", attempt == ATTEMPTS_MAX)
    assert await store.claim(ref, ANY, "w", 9, LONG_MS) == ()
    (left,) = await store.work(ref)
    assert (left.given_up, left.reason) == (True, f"garbage {ATTEMPTS_MAX}")
    assert not (await store.schedule(ref, COMPRESS, "", 0, "once more")).given_up
    assert (await claim(store, ref)).attempts == 1


async def test_workers_that_die_silently_use_up_the_attempts_too(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    for attempt in range(ATTEMPTS_MAX):
        item = await claim(store, ref, f"w{attempt}", lease_ms=1)
    while not (await store.work(ref))[0].given_up:
        assert await store.claim(ref, ANY, "w", 9, LONG_MS) == ()
    assert item.worker in (await store.work(ref))[0].reason


async def test_what_is_given_back_waits_for_its_time(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref)
    await store.give_back(ref, fence_of(item), "429", LONG_MS)
    assert await store.claim(ref, ANY, "w2", 9, LONG_MS) == ()


async def test_a_summary_that_waits_for_a_verdict_is_a_task_at_once(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    pending = (await write(store, ref, AWAITED, None)).node
    (task,) = await store.work(ref)
    assert (task.work_id, task.kind, task.summary) == (f"validate:{pending.node_id}", VALIDATE, pending.node_id)
    item = await claim(store, ref)
    judged = await store.judge(
        ref, "", pending, Judgement(status=SummaryStatus.VALID, required=(EXTERNAL,)), NO_REQUEST, fence_of(item)
    )
    assert judged.node.judgement is not None
    assert judged.node.judgement.status is SummaryStatus.VALID
    assert await store.work(ref) == ()


async def test_a_verdict_of_a_late_worker_changes_nothing(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    pending = (await write(store, ref, AWAITED, None)).node
    late = await claim(store, ref, "late", lease_ms=1)
    await claim(store, ref, "heir")
    judgement = Judgement(status=SummaryStatus.VALID)
    attempt = store.judge(ref, "", pending, judgement, NO_REQUEST, fence_of(late))
    await refused(ConflictError, Reason.LEASE_LOST, attempt)
    (node,) = await store.nodes(ref, [pending.node_id], BIG)
    assert node.judgement is not None
    assert node.judgement.status is SummaryStatus.PENDING


async def test_a_summary_that_failed_leaves_the_task_with_its_worker(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref)
    failed = await write(store, ref, Judgement(status=SummaryStatus.FAILED), fence_of(item))
    assert failed.branch.summary_head == 0
    assert (await store.held(ref, fence_of(item))).token == item.token
    await write(store, ref, AWAITED, fence_of(item))
    assert [task.kind for task in await store.work(ref)] == [VALIDATE]


async def test_a_repeated_result_is_answered_as_before(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref)
    request = Request("r1", "d" * 32)
    first = await write(store, ref, AWAITED, fence_of(item), request)
    assert await store.replayed(ref, request) == first


async def test_what_nobody_needs_any_more_is_not_handed_out(store: TreeStore, ref: TreeRef) -> None:
    await refused(FailedPreconditionError, Reason.NO_WORK, store.schedule(ref, COMPRESS, "", 0, ""))
    await grow(store, ref, "a")
    valid = (await compress(store, ref)).node
    attempt = store.schedule(ref, VALIDATE, "", valid.node_id, "")
    await refused(FailedPreconditionError, Reason.NO_WORK, attempt)
    await grow(store, ref, "b")
    await store.schedule(ref, COMPRESS, "", 0, "")
    await compress(store, ref)
    assert await store.claim(ref, ANY, "w1", 9, LONG_MS) == ()
    assert await store.work(ref) == ()
    await grow(store, ref, "c")
    await store.schedule(ref, COMPRESS, "", 0, "")
    await revise(store, ref, 1)
    assert await store.claim(ref, ANY, "w1", 9, LONG_MS) == ()


async def test_a_segment_begins_after_the_last_summary_that_stands(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    first: Node = (await compress(store, ref)).node
    assert isinstance(first.body, Summary)
    grown = await grow(store, ref, "c", "d")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref)
    assert (item.base, item.last) == (first.body.last_covered, grown.node_ids[-1])


async def test_tasks_of_all_trees_are_found_and_those_of_other_tenants_never(store: TreeStore, ref: TreeRef) -> None:
    other = new_ref()
    await store.create(other, NEW, NO_REQUEST)
    for each in (ref, other):
        await grow(store, each, "a")
        await store.schedule(each, COMPRESS, "", 0, "")
    found = await store.claim_any(ref.tenant, ANY, "w1", 9, LONG_MS)
    assert [(at, item.work_id) for at, item in found] == [(ref, "compress:main")]
    assert await store.claim_any(ref.tenant, ANY, "w1", 9, LONG_MS) == ()
    await store.drop(other)
    assert await store.claim_any(other.tenant, ANY, "w1", 9, LONG_MS) == ()


async def test_a_task_whose_hint_was_lost_is_found_among_the_trees(server: EmbeddedStore) -> None:
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    store, ref = RedisTreeStore(connection, LIMITS), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a")
    await store.schedule(ref, COMPRESS, "", 0, "")
    await connection.client.delete(keys.work_index(ref.tenant))
    found = await store.claim_any(ref.tenant, ANY, "w1", 9, LONG_MS)
    assert [at for at, _ in found] == [ref]
    await connection.close()


async def test_a_long_segment_is_handed_out_in_parts(server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SEGMENT_STEPS_MAX == 4096
    monkeypatch.setattr("katsura.state.queue_redis.SEGMENT_STEPS_MAX", 2)
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    store, ref = RedisTreeStore(connection, LIMITS), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a", "b", "c")
    await store.schedule(ref, COMPRESS, "", 0, "")
    item = await claim(store, ref)
    (node,) = await store.nodes(ref, [item.last], BIG)
    assert isinstance(node.body, Step)
    assert node.body.content == "b"
    await connection.close()
