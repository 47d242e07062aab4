"""What a tree holds beside its paths: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from katsura.domain.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.ids import NodeId
from katsura.domain.trees import (
    REDACTED,
    Attachment,
    Effect,
    EventKind,
    Hint,
    Judgement,
    Shown,
    Step,
    Summary,
    SummaryStatus,
    request_of,
)
from katsura.state.connect import Store
from katsura.state.contents import EXTRAS_BYTES_MAX, LOOKS_MAX, Scope, TreeChange
from katsura.state.trees import NewStep, TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import (
    BIG,
    LIMITS,
    NEW,
    NO_REQUEST,
    compress,
    contents,
    grow,
    new_ref,
    refused,
    revise,
    step,
)

FIRST = Attachment("task-a", 0, "application/json", b'{"x":1}\n\x00')
SECOND = Attachment("task-a", 1, "", b"")


async def search(store: TreeStore, ref: TreeRef, scope: Scope, *words: str, **more: object) -> list[tuple[int, bool]]:
    fields = {"branch": "", "before": 0, "page_size": 50, "bytes_max": BIG, "include_abandoned": False, **more}
    hits = await store.search(ref, scope, words=[w.encode() for w in words], **fields)  # type: ignore[arg-type]
    return [(int(n.node_id), live) for n, live in zip(hits.nodes, hits.live, strict=True)]


async def test_a_tree_changes_what_is_named_and_keeps_the_rest(store: TreeStore, ref: TreeRef) -> None:
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    change = TreeChange("", ("new", "new", "never pay twice"), ("gone",), {"a": "1"}, ("team",), "side")
    request = request_of("u", "update", change)
    changed = await store.update(ref, change, request)
    assert (changed.goal, changed.pins, changed.labels) == ("", ("never pay twice", "new"), {"a": "1"})
    assert (changed.default_branch, changed.policy) == ("side", NEW.policy)
    assert (await store.read(ref))[0] == changed
    await store.update(ref, TreeChange(remove_pins=("never pay twice", "new")), NO_REQUEST)
    assert await store.update(ref, change, request) == changed
    tree, _ = await store.read(ref)
    assert (tree.goal, tree.pins, tree.labels) == ("", (), {"a": "1"})
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, store.update(ref, change, request_of("u", "other")))


async def test_a_tree_cannot_be_given_too_many_pins_or_a_branch_that_cannot_grow(
    store: TreeStore, ref: TreeRef
) -> None:
    many = TreeChange(add_pins=tuple(f"pin {i}" for i in range(64)))
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, store.update(ref, many, NO_REQUEST))
    labels = TreeChange(set_labels={str(i): "" for i in range(64)})
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, store.update(ref, labels, NO_REQUEST))
    nowhere = store.update(ref, TreeChange(default_branch="nope"), NO_REQUEST)
    await refused(NotFoundError, Reason.BRANCH_NOT_FOUND, nowhere)
    await grow(store, ref, "a")
    await revise(store, ref, 0)
    left = store.update(ref, TreeChange(default_branch="main"), NO_REQUEST)
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, left)
    assert (await store.read(ref))[0].pins == NEW.pins


async def test_bytes_beside_a_node_are_kept_once_per_key(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    assert await store.put_attachments(ref, 1, [FIRST, SECOND], False) == ((True, True), 3)
    assert await store.put_attachments(ref, 1, [FIRST, SECOND], False) == ((False, False), 3)
    other = Attachment("task-a", 0, "", b"other")
    third = Attachment("task 7 0", 7, "x", b"t")
    assert await store.put_attachments(ref, 1, [other, third], False) == ((False, True), 4)
    (node,) = await store.nodes(ref, [1], BIG)
    assert node.attachments == (FIRST, SECOND, third)
    assert await store.put_attachments(ref, 1, [other], True) == ((True,), 5)
    page = await store.path(ref, "", 0, 10, BIG)
    assert [n.attachments for n in page.nodes] == [(other, SECOND, third), ()]
    assert page.nodes[0].content_hash == node.content_hash
    events = store.watch(ref, "", 2, 5.0)
    event = await anext(events)
    assert (event.kind, event.branch, event.node_ids) == (EventKind.ATTACHED, "main", (1,))
    await events.aclose()  # type: ignore[attr-defined]


async def test_bytes_beside_a_node_have_a_limit_and_count_in_answers(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    half = Attachment("t", 0, "", b"x" * (EXTRAS_BYTES_MAX // 2))
    await store.put_attachments(ref, 1, [half], False)
    again = Attachment("t", 1, "", half.data)
    full = store.put_attachments(ref, 1, [again], False)
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, full)
    await store.put_attachments(ref, 1, [Attachment("t", 0, "", b"small")], True)
    await store.put_attachments(ref, 1, [again], False)
    await store.put_attachments(ref, 2, [half], False)
    page = await store.path(ref, "", 0, 10, EXTRAS_BYTES_MAX // 2 + 1000)
    assert [n.node_id for n in page.nodes] == [2]
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.put_attachments(ref, 9, [FIRST], False))


async def test_nodes_are_listed_newest_first_page_by_page(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await store.fork(ref, "", 1, "side", NO_REQUEST)
    await grow(store, ref, "c", "d", branch="side")
    await compress(store, ref)
    seen, before = [], 0
    while True:
        page = await store.list_nodes(ref, before, 2, BIG, "")
        seen.append([int(n.node_id) for n in page.nodes])
        before = page.next_before
        if not before:
            break
    assert seen == [[5, 4], [3, 2], [1]]
    side = await store.list_nodes(ref, 0, 10, BIG, "side")
    assert ([n.node_id for n in side.nodes], side.next_before) == ([4, 3], 0)
    small = await store.list_nodes(ref, 0, 10, 1, "")
    assert ([n.node_id for n in small.nodes], small.next_before) == ([5], 5)
    assert [n.node_id for n in (await store.list_nodes(ref, 99, 1, BIG, "")).nodes] == [5]


async def test_one_call_looks_at_a_bounded_number_of_nodes(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "the needle")
    await grow(store, ref, *(f"s{i}" for i in range(LOOKS_MAX)))
    page = await store.list_nodes(ref, 0, 10, BIG, "other")
    assert (page.nodes, page.next_before) == ((), 2)
    hits = await store.search(ref, Scope.PATH, "", [b"needle"], 0, 10, BIG, False)
    assert (hits.nodes, hits.next_before) == ((), 2)
    rest = await store.search(ref, Scope.PATH, "", [b"needle"], hits.next_before, 10, BIG, False)
    assert ([n.node_id for n in rest.nodes], rest.next_before) == ([1], 0)


async def test_steps_are_found_by_client_id_on_every_branch(store: TreeStore, ref: TreeRef) -> None:
    await store.grow(ref, "", None, [step("a", client_step_id="c1"), step("b")], True, NO_REQUEST)
    await store.fork(ref, "", -1, "side", NO_REQUEST)
    await store.grow(ref, "side", None, [step("z", client_step_id="c1")], True, NO_REQUEST)
    found = await store.find_steps(ref, ["nope", "c1"], "")
    assert [(f.client_step_id, f.branch, f.node_id) for f in found] == [("c1", "main", 1), ("c1", "side", 3)]
    assert [f.node_id for f in await store.find_steps(ref, ["c1"], "side")] == [3]
    await refused(NotFoundError, Reason.BRANCH_NOT_FOUND, store.find_steps(ref, ["c1"], "nope"))


async def test_words_are_found_on_the_path_the_branch_and_in_the_tree(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "Hotel KYOTO, 90 USD", "hotel Ō\u0161aka", 'say "hi"\n')
    await store.fork(ref, "", 2, "side", NO_REQUEST)
    await grow(store, ref, "Kyoto again", branch="side")
    assert await search(store, ref, Scope.PATH, "kyoto", "hotel") == [(1, True)]
    assert await search(store, ref, Scope.PATH, "kyoto", branch="side") == [(4, True), (1, True)]
    assert await search(store, ref, Scope.BRANCH, "kyoto", branch="side") == [(4, True)]
    assert await search(store, ref, Scope.BRANCH, "hotel") == [(2, True), (1, True)]
    assert await search(store, ref, Scope.TREE, "kyoto") == [(4, True), (1, True)]
    assert await search(store, ref, Scope.PATH, "ō\u0161aka") == []
    assert await search(store, ref, Scope.PATH, "Ō\u0161aka") == [(2, True)]
    assert await search(store, ref, Scope.PATH, '\\"hi\\"') == [(3, True)]
    assert await search(store, ref, Scope.PATH, "hotel", page_size=1) == [(2, True)]
    assert await search(store, ref, Scope.PATH, "hotel", before=2) == [(1, True)]
    off = store.search(ref, Scope.BRANCH, "side", [b"kyoto"], 2, 5, BIG, False)
    await refused(FailedPreconditionError, Reason.BAD_BOUNDARY, off)


async def test_what_only_abandoned_branches_hold_is_left_out_of_the_tree(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "wrong start", "wrong turn")
    await compress(store, ref)
    revised = await revise(store, ref, 1)
    await revise(store, ref, 0)
    await grow(store, ref, "right")
    hints = [int(revised.hint.node_id), int(revised.hint.node_id) + 1]
    assert await search(store, ref, Scope.TREE, "wrong") == [(hints[1], True)]
    everything = await search(store, ref, Scope.TREE, "wrong", include_abandoned=True)
    assert everything == [(hints[1], True), (hints[0], False), (2, False), (1, False)]
    assert await search(store, ref, Scope.TREE, "done", include_abandoned=True) == [(3, False)]


async def test_redacted_content_is_gone_with_all_that_may_quote_it(store: TreeStore, ref: TreeRef) -> None:
    secret = Step("the PIN is 4711", client_step_id="c", opaque=b"4711", attributes={"t": "4711"}, agent_id="4711")
    await store.grow(ref, "", None, [step("hello"), NewStep(secret, 10), step("thanks")], True, NO_REQUEST)
    await store.put_attachments(ref, 2, [Attachment("4711", 0, "", b"4711")], False)
    await store.attach(ref, "tok", {1: [1], 2: [4711]})
    summary = await compress(store, ref, last=2)
    await compress(store, ref)
    revised = await revise(store, ref, 1)
    before = {n.node_id: n for n in await store.nodes(ref, [1, 2, 3, 4, 5], BIG)}
    request = request_of("r", "redact", 2)
    ids, revision = await store.redact(ref, [2], request)
    assert ids == (2, summary.node.node_id, revised.hint.node_id)
    assert await store.redact(ref, [2], request) == (ids, revision)
    nodes = {n.node_id: n for n in await store.nodes(ref, [1, 2, 3, 4, 5, 6], BIG)}
    assert [n for n in nodes if nodes[n].redacted] == [2, 4, 6]
    assert nodes[2].body == Step(REDACTED, role="user", kind=secret.kind)
    assert (nodes[2].content_hash, nodes[2].depth) == (before[NodeId(2)].content_hash, 2)
    assert (nodes[2].attachments, nodes[2].tokenized_for, nodes[1].tokenized_for) == ((), (), ("tok",))
    assert isinstance(nodes[4].body, Summary)
    assert (nodes[4].body.body.text, nodes[4].body.last_covered) == (REDACTED, 2)
    assert isinstance(nodes[4].judgement, Judgement)
    assert nodes[4].judgement.status is SummaryStatus.FAILED
    assert isinstance(nodes[6].body, Hint)
    assert (nodes[6].body.reason, nodes[6].body.first_action) == (REDACTED, REDACTED)
    assert nodes[3] == before[NodeId(3)]
    assert await contents(store, ref, "main") == ["hello", REDACTED, "thanks"]
    assert await search(store, ref, Scope.TREE, "4711", include_abandoned=True) == []
    assert await search(store, ref, Scope.TREE, "redacted", include_abandoned=True) == []


async def test_a_redacted_step_is_never_merged_with_and_its_client_id_stays_taken(
    store: TreeStore, ref: TreeRef
) -> None:
    await grow(store, ref, "root")
    await store.grow(ref, "", None, [step("secret", client_step_id="c")], True, NO_REQUEST)
    await store.redact(ref, [2], NO_REQUEST)
    await store.fork(ref, "", 1, "side", NO_REQUEST)
    assert (await grow(store, ref, "secret", branch="side")).merged == (False,)
    again = store.grow(ref, "", None, [step("secret", client_step_id="c")], True, NO_REQUEST)
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, again)
    await refused(NotFoundError, Reason.NODE_NOT_FOUND, store.redact(ref, [1, 99], NO_REQUEST))
    assert [n.redacted for n in (await store.path(ref, "side", 0, 5, BIG)).nodes] == [False, False]


async def test_a_hint_that_tells_of_a_redacted_effect_goes_with_it(store: TreeStore, ref: TreeRef) -> None:
    paid = [step("a"), step("b"), step("try"), step("buy 4711", effect=Effect.IRREVERSIBLE)]
    await store.grow(ref, "", None, paid, True, NO_REQUEST)
    first, again = await revise(store, ref, 2), await revise(store, ref, 1)
    assert [e.excerpt for e in again.effects] == ["buy 4711"], "the hint that knew of it is left behind too"
    assert (await store.redact(ref, [4], NO_REQUEST))[0] == (4, first.hint.node_id, again.hint.node_id)
    nodes = await store.nodes(ref, [first.hint.node_id, again.hint.node_id], BIG)
    assert [n.body.standing for n in nodes if isinstance(n.body, Hint)] == [(), ()]


async def test_a_repeated_revise_no_longer_tells_a_redacted_effect(store: TreeStore, ref: TreeRef) -> None:
    await store.grow(ref, "", None, [step("a"), step("buy 4711", effect=Effect.IRREVERSIBLE)], True, NO_REQUEST)
    request = request_of("r1", "revise", 1)
    revised = await revise(store, ref, 1, request)
    assert [e.excerpt for e in revised.effects] == ["buy 4711"]
    await store.redact(ref, [2], NO_REQUEST)
    again = await store.replayed(ref, request)
    assert again is not None
    assert "4711" not in repr(again)
    assert [e.excerpt for e in again.effects] == [REDACTED]  # type: ignore[union-attr]


async def test_what_snapshots_have_shown_is_forgotten_by_a_redaction(server: EmbeddedStore) -> None:
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    store, ref = RedisTreeStore(connection, LIMITS), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "secret", "other")

    async def shown() -> Shown:
        return (await store.snapshot(ref, "", 1000, 8, "", False)).steps[1]

    first = await shown()
    assert await shown() is first
    await store.redact(ref, [1], NO_REQUEST)
    again = await shown()
    assert (again == first, again is first) == (True, False)
    await connection.close()
