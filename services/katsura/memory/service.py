"""The memory service's operations: `core` decides, the store keeps, this composes the two.

Domain data in, domain data out; errors are those of `katsura.domain.errors`. Operations that read before they write
(Compress, Maintain, Revise) first ask whether the request was answered before, and compare what they read when they
write, so a result computed from an older state never replaces a newer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final, TypeVar

from katsura.domain.errors import ConflictError, InvalidArgumentError, NotFoundError, OutOfRangeError, Reason
from katsura.domain.ids import NodeId, TenantId, TreeId, checked_name
from katsura.domain.trees import (
    ROOT,
    Branch,
    Check,
    Hint,
    Judgement,
    Node,
    Step,
    Summary,
    SummaryBody,
    Tree,
    TreePolicy,
    Verdict,
    cover_digest,
    request_of,
)
from katsura.memory.core import limits
from katsura.memory.core.assemble import Assembly, assemble
from katsura.memory.core.compress import COMPRESSORS, body_tokens
from katsura.memory.core.tokens import estimate, estimate_step
from katsura.memory.core.validate import EXTERNAL, OUTCOME, VALIDATORS, Evidence, judge
from katsura.state.trees import (
    Cover,
    Event,
    Grown,
    NewStep,
    NewTree,
    Path,
    Position,
    Retreat,
    Revised,
    TreeRef,
    TreeStore,
    Written,
    excerpt,
)
from katsura.telemetry import log, metrics, names, trace

_LOG = log.get(__name__)
_COMMITS = metrics.counter(names.MEMORY_COMMITS, "Commits acknowledged.", ("operation",))
_CONFLICTS = metrics.counter(names.MEMORY_CONFLICTS, "Writes that lost a compare-and-set.", ("operation",))
_ASSEMBLE_SECONDS = metrics.histogram(names.MEMORY_ASSEMBLE_SECONDS, "Seconds an assembly took.")
_ATTEMPTS: Final = 16
_BY_AGENT: Final = "agent"
_COVER_IN_PLACE: Final = 32
"""Covers longer than this are compressed and checked on a thread, so that other calls go on."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """What every write to a branch says about itself. `expected_head` None is refused unless `unconditional`."""

    request_id: str
    tree: TreeRef
    branch: str
    expected_head: int | None
    unconditional: bool

    def checked(self) -> Write:
        """This, with `expected_head` None exactly where any head will do."""
        if self.expected_head is None and not self.unconditional:
            raise InvalidArgumentError(
                "expected_head: say which head you have seen (0: an empty branch), or set unconditional",
                reason=Reason.HEAD_REQUIRED,
                field="expected_head",
            )
        if self.expected_head is not None and self.unconditional:
            raise limits.refuse("unconditional", "expected_head is given too; send one of them")
        if self.expected_head is not None:
            limits.check_range(self.expected_head, "expected_head", 0, _ID_MAX)
        return self


_ID_MAX: Final = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class Assembled:
    """A context, the branch as assembled, whether its cut moved, and when."""

    assembly: Assembly
    branch: Branch
    cut_moved: bool
    position: Position


@dataclass(frozen=True, slots=True)
class Outside:
    """Verdict of a validator outside."""

    validator: str
    fidelity: Verdict
    outcome: Verdict
    note: str
    suggested_restore: int


class Memory:
    """Trees of all tenants. `close` ends validations that still run.

    Args:
        trees: the store.
        new_name: draws a fresh tree id.
        heartbeat_s: silence after which a Watch says that it is alive.
    """

    def __init__(self, trees: TreeStore, new_name: Callable[[], str], heartbeat_s: float) -> None:
        self._trees = trees
        self._new_name = new_name
        self._heartbeat_s = heartbeat_s
        self._late: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait for validations that still run."""
        await asyncio.gather(*self._late)

    async def create_tree(
        self,
        tenant: TenantId,
        request_id: str,
        tree_id: str,
        goal: str,
        pins: Sequence[str],
        policy: TreePolicy,
        labels: Mapping[str, str],
    ) -> tuple[Tree, Branch]:
        """Make a tree; without a `tree_id` its name follows from the request id, so a retry finds the same tree."""
        limits.check_text(request_id, "request_id")
        limits.check_tree(goal, pins, labels)
        name = limits.check_tree_id(tree_id) if tree_id else self._name_for(tenant, request_id)
        new = NewTree(goal, tuple(pins), limits.complete_policy(policy, self._trees.durability), dict(labels))
        request = request_of(request_id, "create", tree_id, goal, pins, policy, labels)
        with _committing("create"):
            return await self._trees.create(TreeRef(tenant, TreeId(name)), new, request)

    async def get_tree(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        """The tree and its branches."""
        return await self._trees.read(ref)

    async def list_trees(self, tenant: TenantId, size: int, token: str) -> tuple[tuple[Tree, ...], str]:
        """A page of trees, newest first."""
        stamp, _, name = token.partition(":")
        if token and not (stamp.isdigit() and name):
            raise limits.refuse("page_token", "it is not one of ours; send next_page_token as it came")
        return await self._trees.trees(tenant, limits.page_size(size), token)

    async def delete_tree(self, ref: TreeRef) -> None:
        """Drop a tree and everything in it."""
        with _committing("delete"):
            await self._trees.drop(ref)

    async def grow(self, write: Write, steps: Sequence[Step], merge: bool) -> Grown:
        """Append steps, all or none."""
        write = write.checked()
        complete = limits.complete_steps(steps)
        request = request_of(
            write.request_id, "grow", write.branch, write.expected_head, write.unconditional, complete, merge
        )
        new = [NewStep(step, estimate_step(step)) for step in complete]
        with _committing("grow"):
            return await self._trees.grow(write.tree, write.branch, write.expected_head, new, merge, request)

    async def compress(
        self,
        write: Write,
        last_covered: int,
        body: SummaryBody | None,
        compressor: str,
        validators: Sequence[str],
        proceed: bool,
    ) -> Written:
        """Close the raw segment with a summary; validated before the answer unless `proceed`."""
        write = write.checked()
        limits.check_range(last_covered, "last_covered", 0, _ID_MAX)
        limits.check_validators(validators, "validators")
        if compressor:
            limits.check_compressor(compressor, "compressor")
        if body is not None:
            limits.check_body(body, "summary_body")
            if compressor:
                raise limits.refuse("compressor", "summary_body is given too; send one of them")
        fields = (write.branch, write.expected_head, write.unconditional, last_covered, body, compressor, validators)
        request = request_of(write.request_id, "compress", *fields, proceed)
        if (done := await self._trees.replayed(write.tree, request)) is not None:
            return _as(Written, done)
        policy = await self._policy(write.tree, write.branch)
        required, name = tuple(validators) or policy.validators, compressor or policy.compressor
        if EXTERNAL in required and not proceed:
            raise limits.refuse(
                "on_pending", "the verdict of a validator outside cannot be waited for; send ON_PENDING_PROCEED"
            )

        async def attempt() -> Written:
            cover = await self._trees.cover(write.tree, write.branch, write.expected_head, last_covered)
            nodes = await self._cover_nodes(write.tree, cover)
            evidence = await _thread_if(len(nodes), lambda: _evidence(cover, nodes, body, name))
            judgement = judge((), required, cover.base)
            if not proceed:
                judgement = await _thread_if(len(nodes), lambda: _checked(evidence, required, cover.base))
            return await self._trees.summarise(
                write.tree, cover, write.expected_head, evidence.summary, judgement, request
            )

        with _committing("compress"):
            written = await self._until_it_holds(write, attempt)
        if proceed:
            self._validate_later(write.tree, written)
        return written

    async def maintain(
        self,
        ref: TreeRef,
        request_id: str,
        branch: str,
        summary_id: int,
        validators: Sequence[str],
        outside: Outside | None,
    ) -> Written:
        """Validate a summary again, or record the verdict of a validator outside."""
        limits.check_text(request_id, "request_id")
        limits.check_range(summary_id, "summary_id", 0, _ID_MAX)
        limits.check_validators(validators, "validators")
        if outside is not None:
            _check_outside(outside)
        request = request_of(request_id, "maintain", branch, summary_id, validators, outside)
        if (done := await self._trees.replayed(ref, request)) is not None:
            return _as(Written, done)

        async def attempt() -> Written:
            node = await self._summary(ref, branch, summary_id)
            before = node.judgement
            assert before is not None, "summaries are judged"
            if outside is not None:
                judgement = _with_outside(before, outside)
            else:
                evidence = await self._evidence_of(ref, node)
                required = tuple(validators) or before.required
                boundary = evidence.cover[0].parent_id
                judgement = await _thread_if(
                    len(evidence.cover), lambda: _checked(evidence, required, boundary, before.checks)
                )
            return await self._trees.judge(ref, branch, node, judgement, request)

        with _committing("maintain"):
            return await self._until_it_holds(Write(request_id, ref, branch, None, True), attempt)

    async def revise(
        self, write: Write, restore_after: int, reason: str, new_branch: str, keep_default: bool
    ) -> Revised:
        """Go back to a boundary on a new branch; the old one is abandoned and leaves a hint."""
        write = write.checked()
        limits.check_range(restore_after, "restore_after", 0, _ID_MAX)
        limits.check_text(reason, "reason")
        if new_branch:
            checked_name(new_branch, "new_branch")
        fields = (write.branch, write.expected_head, write.unconditional, restore_after, reason, new_branch)
        request = request_of(write.request_id, "revise", *fields, keep_default)
        if (done := await self._trees.replayed(write.tree, request)) is not None:
            return _as(Revised, done)

        async def attempt() -> Revised:
            retreat = await self._trees.retreat(write.tree, write.branch, write.expected_head, restore_after)
            hint = _hint(retreat, reason)
            tokens = estimate(hint.reason + hint.first_action)
            return await self._trees.revise(write.tree, retreat, hint, tokens, new_branch, keep_default, request)

        with _committing("revise"):
            return await self._until_it_holds(write, attempt)

    async def fork(
        self, ref: TreeRef, request_id: str, branch: str, at_node: int, new_branch: str
    ) -> tuple[Branch, Position]:
        """Name a new branch at any step of a branch."""
        limits.check_text(request_id, "request_id")
        limits.check_range(at_node, "at_node", -1, _ID_MAX)
        if new_branch:
            checked_name(new_branch, "new_branch")
        request = request_of(request_id, "fork", branch, at_node, new_branch)
        with _committing("fork"):
            return await self._trees.fork(ref, branch, at_node, new_branch, request)

    async def assemble_context(
        self, ref: TreeRef, branch: str, budget: int, reserve: int, tokenizer: str, with_ids: bool
    ) -> Assembled:
        """The prompt of a branch in at most `budget` less `reserve` rendered tokens."""
        limits.check_range(budget, "budget_tokens", 1, limits.BUDGET_TOKENS_MAX)
        limits.check_range(reserve, "reserve_tokens", 0, budget)
        if tokenizer:
            checked_name(tokenizer, "tokenizer_digest")
        elif with_ids:
            raise limits.refuse("tokenizer_digest", "include_token_ids needs to know whose ids")
        room = budget - reserve
        with _ASSEMBLE_SECONDS.time():
            snapshot = await self._trees.snapshot(ref, branch, room, limits.HINTS_MAX, tokenizer, with_ids)
            assembly = assemble(snapshot, room, tokenizer=bool(tokenizer))
        moved = assembly.cut != snapshot.branch.cut
        if moved:
            await self._trees.note_cut(ref, snapshot.branch.name, assembly.cut)
        position = Position(snapshot.tree.revision, snapshot.tree.incarnation)
        return Assembled(assembly, replace(snapshot.branch, cut=assembly.cut), moved, position)

    async def attach_tokens(
        self, ref: TreeRef, tokenizer: str, tokens: Sequence[tuple[int, Sequence[int]]]
    ) -> tuple[NodeId, ...]:
        """Attach the token ids of rendered segments; the first ones attached stay."""
        checked_name(tokenizer, "tokenizer_digest")
        if len(tokens) > limits.NODES_MAX:
            raise limits.refuse("nodes", f"{len(tokens)} nodes; at most {limits.NODES_MAX} are taken")
        found: dict[int, Sequence[int]] = {}
        for i, (node_id, ids) in enumerate(tokens):
            limits.check_range(node_id, f"nodes[{i}].node_id", 0, _ID_MAX)
            if not ids or min(ids) < 0:
                raise limits.refuse(f"nodes[{i}].token_ids", "they are none, or negative")
            if node_id in found:
                raise limits.refuse(f"nodes[{i}].node_id", f"{node_id} is in this request twice")
            found[node_id] = ids
        limits.check_range(sum(map(len, found.values())), "nodes", 0, limits.TOKEN_IDS_MAX)
        return await self._trees.attach(ref, tokenizer, found) if found else ()

    async def get_path(self, ref: TreeRef, branch: str, end_node: int, size: int) -> Path:
        """A page of a branch's path."""
        limits.check_range(end_node, "end_node", 0, _ID_MAX)
        return await self._trees.path(ref, branch, end_node, limits.page_size(size), limits.ANSWER_BYTES_MAX)

    async def get_nodes(self, ref: TreeRef, node_ids: Sequence[int]) -> tuple[Node, ...]:
        """Nodes by id, in the order asked for."""
        if len(node_ids) > limits.NODES_MAX:
            raise limits.refuse("node_ids", f"{len(node_ids)} ids; at most {limits.NODES_MAX} are taken")
        for i, node_id in enumerate(node_ids):
            limits.check_range(node_id, f"node_ids[{i}]", 1, _ID_MAX)
        return await self._trees.nodes(ref, node_ids, limits.ANSWER_BYTES_MAX)

    def watch(self, ref: TreeRef, resume_token: str, after_revision: int) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        limits.check_range(after_revision, "after_revision", -1, _ID_MAX)
        limits.check_text(resume_token, "resume_token")
        return self._trees.watch(ref, resume_token, after_revision, self._heartbeat_s)

    def _name_for(self, tenant: TenantId, request_id: str) -> str:
        if not request_id:
            return self._new_name()
        return "t" + blake2b(request_id.encode(), key=tenant.encode()[:64], digest_size=10).hexdigest()

    async def _policy(self, ref: TreeRef, branch: str) -> TreePolicy:
        return (await self._trees.snapshot(ref, branch, 0, 0, "", False)).tree.policy

    async def _until_it_holds(self, write: Write, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run a read-then-write again while others move the branch in between, if any head will do."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await attempt()
            except ConflictError:
                if write.expected_head is not None:
                    raise
        return await attempt()

    async def _cover_nodes(self, ref: TreeRef, cover: Cover) -> tuple[Node, ...]:
        if cover.count > limits.COVER_STEPS_MAX:
            raise OutOfRangeError(
                f"last_covered: the segment has {cover.count} steps; one summary covers at most "
                f"{limits.COVER_STEPS_MAX}. Name an earlier last_covered and compress in parts",
                reason=Reason.BAD_BOUNDARY,
                field="last_covered",
            )
        return await self._steps_up_to(ref, cover.branch.name, cover.last, cover.count)

    async def _steps_up_to(self, ref: TreeRef, branch: str, last: int, count: int) -> tuple[Node, ...]:
        nodes: tuple[Node, ...] = ()
        while len(nodes) < count:
            size = min(limits.PAGE_MAX, count - len(nodes))
            page = await self._trees.path(ref, branch, last, size, limits.ANSWER_BYTES_MAX)
            nodes = (*page.nodes, *nodes)
            last = page.next_end
        return nodes

    async def _summary(self, ref: TreeRef, branch: str, summary_id: int) -> Node:
        if not summary_id:
            found = (await self._trees.path(ref, branch, 0, 1, 0)).branch
            if found.summary_head == ROOT:
                raise NotFoundError(
                    f"branch {found.name!r} has no summary yet; Compress makes one",
                    reason=Reason.NODE_NOT_FOUND,
                    field="summary_id",
                )
            summary_id = found.summary_head
        (node,) = await self._trees.nodes(ref, [summary_id], limits.ANSWER_BYTES_MAX)
        if not isinstance(node.body, Summary):
            raise limits.refuse("summary_id", f"node {summary_id} is not a summary")
        return node

    async def _evidence_of(self, ref: TreeRef, node: Node) -> Evidence:
        assert isinstance(node.body, Summary)
        count = node.body.covered_count
        cover = await self._steps_up_to(ref, node.birth_branch, node.body.last_covered, count)
        previous = None
        if node.parent_id:
            (before,) = await self._trees.nodes(ref, [node.parent_id], limits.ANSWER_BYTES_MAX)
            previous = before.body.body if isinstance(before.body, Summary) else None
        return Evidence(node.body, cover, previous)

    def _validate_later(self, ref: TreeRef, written: Written) -> None:
        async def validate() -> None:
            try:
                await self.maintain(ref, "", written.branch.name, written.node.node_id, (), None)
            except (ConflictError, NotFoundError):
                return  # judged by somebody else, or dropped with its tree
            except Exception as error:  # noqa: BLE001 - the summary stays PENDING, which is safe; say so
                _LOG.error("a late validation failed; the summary stays pending", exc=error)

        self._spawn(validate())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)


@contextmanager
def _committing(operation: str) -> Iterator[None]:
    with trace.span(names.SPAN_COMMIT, {names.OPERATION: operation}):
        try:
            yield
        except ConflictError:
            _CONFLICTS.labels(operation).inc()
            raise
    _COMMITS.labels(operation).inc()


def _as(kind: type[T], found: object) -> T:
    """The answer of a repeated request. The digest covers the operation, so its kind cannot differ."""
    assert isinstance(found, kind)
    return found


async def _thread_if(size: int, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work) if size > _COVER_IN_PLACE else work()


def _evidence(cover: Cover, nodes: Sequence[Node], body: SummaryBody | None, compressor: str) -> Evidence:
    before = cover.previous.body if cover.previous else None
    previous = before.body if isinstance(before, Summary) else None
    made = body if body is not None else COMPRESSORS[compressor](nodes, previous)
    summary = Summary(
        level=0,
        first_covered=nodes[0].node_id,
        last_covered=cover.last,
        covered_count=cover.count,
        cover_digest=cover_digest(node.content_hash for node in nodes),
        body=made,
        made_by=_BY_AGENT if body is not None else compressor,
        version=cover.versions + 1,
        covered_tokens=cover.tokens,
        body_tokens=body_tokens(made),
    )
    return Evidence(summary, nodes, previous)


def _checked(evidence: Evidence, required: Sequence[str], boundary: NodeId, kept: Sequence[Check] = ()) -> Judgement:
    """Run the built-in validators among `required`; verdicts from outside are kept."""
    outside = [check for check in kept if check.validator not in VALIDATORS]
    ours = [VALIDATORS[name](evidence) for name in required if name in VALIDATORS]
    return judge((*outside, *ours), required, boundary)


def _with_outside(before: Judgement, outside: Outside) -> Judgement:
    findings = (outside.note,) if outside.note else ()
    checks = {check.validator: check for check in before.checks}
    if outside.fidelity:
        checks[outside.validator] = Check(outside.validator, outside.fidelity, findings)
    if outside.outcome:
        checks[OUTCOME] = Check(OUTCOME, outside.outcome, findings)
    judgement = judge(checks.values(), before.required, before.suggested_restore, outside.note)
    if outside.suggested_restore:
        return replace(judgement, suggested_restore=NodeId(outside.suggested_restore))
    return judgement


def _check_outside(outside: Outside) -> None:
    checked_name(outside.validator, "verdict.validator")
    if outside.validator in VALIDATORS:
        raise limits.refuse("verdict.validator", f"{outside.validator!r} is one of ours; use a name of your own")
    if not outside.fidelity and not outside.outcome:
        raise limits.refuse("verdict.fidelity", "neither fidelity nor outcome is told")
    limits.check_text(outside.note, "verdict.note")
    limits.check_range(outside.suggested_restore, "verdict.suggested_restore", 0, _ID_MAX)


def _hint(retreat: Retreat, reason: str) -> Hint:
    step = retreat.first_abandoned.body
    assert isinstance(step, Step), "paths hold steps"
    return Hint(
        abandoned_branch=retreat.branch.name,
        abandoned_head=retreat.branch.head,
        restored_after=retreat.restore_after,
        reason=reason,
        first_action=excerpt(step),
        previous_hint=retreat.previous_hint,
    )
