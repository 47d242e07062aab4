"""The memory service's operations: `core` decides, the store keeps, this composes the two.

Domain data in, domain data out; errors are those of `katsura.domain.errors`. Operations that read before they write
(Compress, Maintain, Revise) first ask whether the request was answered before, and compare what they read when they
write, so a result computed from an older state never replaces a newer one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from katsura.domain.errors import ConflictError, FailedPreconditionError, NotFoundError, OutOfRangeError
from katsura.domain.ids import NodeId, TenantId, TreeId, checked_name
from katsura.domain.trees import (
    Branch,
    Effect,
    Hint,
    Node,
    StaleStep,
    Step,
    Summary,
    Tree,
    TreePolicy,
    request_of,
)
from katsura.memory.archive import Archive
from katsura.memory.branches import Branches
from katsura.memory.contents import Contents
from katsura.memory.core import limits
from katsura.memory.core.assemble import Assembly, KeptSegments, assemble
from katsura.memory.core.expand import expanded, not_expanded, not_shown, shown_summary, too_large
from katsura.memory.core.tokens import estimate, estimate_step, hint_text
from katsura.memory.descent import Descent
from katsura.memory.following import Followed, follow
from katsura.memory.leases import Leases
from katsura.memory.merging import Branching
from katsura.memory.operations import ID_MAX, Write, as_answer, committing
from katsura.memory.queue import Queue
from katsura.memory.recall import Recall
from katsura.memory.references import References
from katsura.memory.slots import Slots
from katsura.memory.subgoals import Subgoals
from katsura.memory.waits import Waits
from katsura.state.trees import (
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
    page_after,
)
from katsura.telemetry import metrics, names

_LISTED: Final = 256
"""Trees that a listing by label reads at once."""
_ASSEMBLE_SECONDS = metrics.histogram(names.MEMORY_ASSEMBLE_SECONDS, "Seconds an assembly took.")


@dataclass(frozen=True, slots=True)
class Assembled:
    """A context, the branch as assembled, whether its cut moved, when, and what no longer holds of the branch."""

    assembly: Assembly
    branch: Branch
    cut_moved: bool
    position: Position
    stale: tuple[StaleStep, ...]


class Memory(
    Subgoals, Queue, Recall, Contents, Slots, Leases, Branches, Branching, References, Waits, Descent, Archive
):
    """Trees of all tenants. `close` ends validations that still run.

    Args:
        trees: the store.
        new_name: draws a fresh tree id.
        heartbeat_s: silence after which a Watch says that it is alive.
    """

    def __init__(self, trees: TreeStore, new_name: Callable[[], str], heartbeat_s: float) -> None:
        super().__init__(trees)
        self._new_name = new_name
        self._segments = KeptSegments()
        self._heartbeat_s = heartbeat_s

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
        with committing("create"):
            return await self._trees.create(TreeRef(tenant, TreeId(name)), new, request)

    async def get_tree(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        """The tree and its branches."""
        return await self._trees.read(ref)

    async def list_trees(
        self, tenant: TenantId, size: int, token: str, labels: Mapping[str, str]
    ) -> tuple[tuple[Tree, ...], str]:
        """A page of the trees that have all of `labels`, newest first. It looks at TREES_LOOKED_AT trees at most, so
        that it may be short, or empty, and not the last."""
        stamp, _, name = token.partition(":")
        if token and not (stamp.isdigit() and name):
            raise limits.refuse("page_token", "it is not one of ours; send next_page_token as it came")
        limits.check_map(labels, "labels")
        size = limits.page_size(size)
        if not labels:
            return await self._trees.trees(tenant, size, token)
        found: list[Tree] = []
        for _ in range(0, limits.TREES_LOOKED_AT, _LISTED):
            page, token = await self._trees.trees(tenant, _LISTED, token)
            found += [tree for tree in page if labels.items() <= tree.labels.items()]
            if len(found) > size:
                return tuple(found[:size]), page_after(found[size - 1])
            if not token:
                break
        return tuple(found), token

    async def grow(self, write: Write, steps: Sequence[Step], merge: bool) -> Grown:
        """Append steps, all or none."""
        write = write.checked()
        complete = limits.complete_steps(steps)
        fields = (write.branch, write.expected_head, write.unconditional, complete, merge)
        request = write.under(request_of(write.request_id, "grow", *fields))
        new = [NewStep(step, estimate_step(step)) for step in complete]
        lost = await self._lost(write.tree, complete) if any(step.references for step in complete) else None
        # No head is ID_MAX: a Grow that may not be is answered where it was before, and else writes nothing.
        expected = write.expected_head if lost is None else ID_MAX
        try:
            with committing("grow"):
                return await self._trees.grow(write.tree, write.branch, expected, new, merge, request)
        except ConflictError:
            if lost is None:
                raise
            raise lost from None

    async def revise(
        self, write: Write, restore_after: int, reason: str, new_branch: str, keep_default: bool
    ) -> Revised:
        """Go back to a boundary on a new branch; the old one is abandoned and leaves a hint."""
        write = write.checked()
        limits.check_range(restore_after, "restore_after", 0, ID_MAX)
        limits.check_text(reason, "reason")
        if new_branch:
            checked_name(new_branch, "new_branch")
        fields = (write.branch, write.expected_head, write.unconditional, restore_after, reason, new_branch)
        request = write.under(request_of(write.request_id, "revise", *fields, keep_default))

        async def attempt() -> Revised:
            retreat = await self._trees.retreat(write.tree, write.branch, write.expected_head, restore_after)
            hint = _hint(retreat, reason)
            return await self._trees.revise(
                write.tree, retreat, hint, estimate(hint_text(hint)), new_branch, keep_default, request
            )

        try:
            with committing("revise"):
                return await self._until_it_holds(write, attempt)
        except (ConflictError, FailedPreconditionError, NotFoundError):
            # A repeated request may find that it was itself what moved the branch; where nothing is in its way, the
            # write says what it answered before.
            if (done := await self._trees.replayed(write.tree, request)) is None:
                raise
            return as_answer(Revised, done)

    async def assemble_context(
        self,
        ref: TreeRef,
        branch: str,
        budget: int,
        reserve: int,
        tokenizer: str,
        with_ids: bool,
        expand: Sequence[int] = (),
    ) -> Assembled:
        """The prompt of a branch in at most `budget` less `reserve` rendered tokens; the summaries `expand` by their
        covers, where these fit."""
        if expand:
            limits.check_ids(expand, "expand", limits.EXPAND_MAX)
        limits.check_range(budget, "budget_tokens", 1, limits.BUDGET_TOKENS_MAX)
        limits.check_range(reserve, "reserve_tokens", 0, budget)
        if tokenizer:
            checked_name(tokenizer, "tokenizer_digest")
        elif with_ids:
            raise limits.refuse("tokenizer_digest", "include_token_ids needs to know whose ids")
        room, segments = budget - reserve, self._segments
        with _ASSEMBLE_SECONDS.time():
            snapshot = await self._snapshot(ref, branch, room, tokenizer, with_ids)
            assembly = assemble(snapshot, room, tokenizer=bool(tokenizer), segment_of=segments.of)
            for summary_id in expand:
                assembly = await self._expanded(ref, snapshot.branch.name, assembly, summary_id, room)
        moved = assembly.cut != snapshot.branch.cut
        if moved:
            await self._trees.note_cut(ref, snapshot.branch.name, assembly.cut)
        position = Position(snapshot.tree.revision, snapshot.tree.incarnation)
        branch_now = replace(snapshot.branch, cut=assembly.cut)
        return Assembled(assembly, branch_now, moved, position, snapshot.stale)

    async def redact(self, ref: TreeRef, request_id: str, node_ids: Sequence[int]) -> tuple[tuple[NodeId, ...], int]:
        """As `Contents.redact`, and forget the texts that contexts have shown. A context that is being assembled
        keeps its own until it is done."""
        try:
            return await super().redact(ref, request_id, node_ids)
        finally:
            self._segments = KeptSegments()

    async def _expanded(self, ref: TreeRef, branch: str, assembly: Assembly, summary_id: int, room: int) -> Assembly:
        segment = shown_summary(assembly, summary_id)
        if segment is None:
            return not_shown(assembly, summary_id)
        (node,) = await self._trees.nodes(ref, [summary_id], limits.ANSWER_BYTES_MAX)
        summary = node.body
        assert isinstance(summary, Summary), "summaries are shown as summaries"
        if too_large(assembly, segment, summary, room):
            return not_expanded(assembly, summary)
        if summary.parts:
            cover = await self._trees.nodes(ref, summary.parts, limits.ANSWER_BYTES_MAX)
        else:
            cover = await self._steps_up_to(ref, branch, summary.last_covered, summary.covered_count)
        return expanded(assembly, segment, summary, cover, room)

    async def attach_tokens(
        self, ref: TreeRef, tokenizer: str, tokens: Sequence[tuple[int, Sequence[int]]]
    ) -> tuple[NodeId, ...]:
        """Attach the token ids of rendered segments; the first ones attached stay."""
        checked_name(tokenizer, "tokenizer_digest")
        if len(tokens) > limits.NODES_MAX:
            raise limits.refuse("nodes", f"{len(tokens)} nodes; at most {limits.NODES_MAX} are taken")
        found: dict[int, Sequence[int]] = {}
        for i, (node_id, ids) in enumerate(tokens):
            limits.check_range(node_id, f"nodes[{i}].node_id", 0, ID_MAX)
            if not ids or min(ids) < 0:
                raise limits.refuse(f"nodes[{i}].token_ids", "they are none, or negative")
            if node_id in found:
                raise limits.refuse(f"nodes[{i}].node_id", f"{node_id} is in this request twice")
            found[node_id] = ids
        limits.check_range(sum(map(len, found.values())), "nodes", 0, limits.TOKEN_IDS_MAX)
        return await self._trees.attach(ref, tokenizer, found) if found else ()

    async def get_path(self, ref: TreeRef, branch: str, end_node: int, size: int) -> Path:
        """A page of a branch's path."""
        limits.check_range(end_node, "end_node", 0, ID_MAX)
        return await self._trees.path(ref, branch, end_node, limits.page_size(size), limits.ANSWER_BYTES_MAX)

    async def get_nodes(self, ref: TreeRef, node_ids: Sequence[int]) -> tuple[Node, ...]:
        """Nodes by id, in the order asked for."""
        if len(node_ids) > limits.NODES_MAX:
            raise limits.refuse("node_ids", f"{len(node_ids)} ids; at most {limits.NODES_MAX} are taken")
        for i, node_id in enumerate(node_ids):
            limits.check_range(node_id, f"node_ids[{i}]", 1, ID_MAX)
        return await self._trees.nodes(ref, node_ids, limits.ANSWER_BYTES_MAX)

    async def nodes_of_event(self, ref: TreeRef, node_ids: Sequence[int], bytes_max: int) -> tuple[Node, ...]:
        """The nodes of a commit as they are now; none where they are larger than `bytes_max`, or gone."""
        if not node_ids or bytes_max <= 0:
            return ()
        try:
            return await self._trees.nodes(ref, node_ids, bytes_max)
        except (NotFoundError, OutOfRangeError):
            return ()

    def watch(self, ref: TreeRef, resume_token: str, after_revision: int) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        limits.check_range(after_revision, "after_revision", -1, ID_MAX)
        limits.check_text(resume_token, "resume_token")
        return self._trees.watch(ref, resume_token, after_revision, self._heartbeat_s)

    def watch_many(self, tenant: TenantId, asked: Followed) -> AsyncIterator[Event]:
        """Every commit of many trees after a point, once and in the order of its tree."""
        return follow(self._trees, tenant, asked, self._heartbeat_s)

    def _name_for(self, tenant: TenantId, request_id: str) -> str:
        if not request_id:
            return self._new_name()
        return "t" + blake2b(request_id.encode(), key=tenant.encode()[:64], digest_size=10).hexdigest()


def _hint(retreat: Retreat, reason: str) -> Hint:
    standing = sorted(retreat.effects, key=lambda effect: effect.effect is not Effect.IRREVERSIBLE)
    return Hint(
        abandoned_branch=retreat.branch.name,
        abandoned_head=retreat.branch.head,
        restored_after=retreat.restore_after,
        reason=reason,
        first_action=retreat.first_action,
        previous_hint=retreat.previous_hint,
        standing=tuple(standing[: limits.HINT_EFFECTS_MAX]),
    )
