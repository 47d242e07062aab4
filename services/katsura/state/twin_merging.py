"""Comparing and merging branches in memory: the twin of `merging_redis`."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.ids import NodeId
from katsura.domain.trees import ROOT, BranchState, EventKind, Request
from katsura.state.contents import TreeRef
from katsura.state.merging import Merged, Merging, Parting
from katsura.state.slots import KEYS_MAX
from katsura.state.tree_records import body_digest
from katsura.state.trees import refusal
from katsura.state.twin_tree import TwinForest, TwinTree, entered, not_writable


class TwinMerging(TwinForest):
    """The part of the twin that is about two branches."""

    async def parting(self, ref: TreeRef, branch: str, other: str) -> Parting:
        """Where two branches parted."""
        state = self._state(ref)
        ours, theirs = state.branch(branch), state.branch(other)
        at = _common(state, ours.head, theirs.head)
        slots = _common(state, state.slot_head(ours), state.slot_head(theirs))
        return Parting(ours, theirs, at, state.depth(at), slots, state.content_hash(ours.head))

    async def merge_replayed(self, ref: TreeRef, request: Request) -> Merged | None:
        """What `merge` answered to this request before."""
        seen = self._state(ref).seen(request) if request.request_id else None
        return seen if isinstance(seen, Merged) else None

    async def merge(self, ref: TreeRef, merging: Merging, request: Request) -> Merged:
        """Append steps and slots to the branch in one commit."""
        state = self._state(ref)

        def write() -> Merged:
            seen = merging.parting
            source, branch = state.branch(seen.other.name), state.guarded(seen.branch.name)
            if merging.closes:
                if source.held_by:
                    raise not_writable(ref, source)
                state.guard(source, 0)
            for now, then, slots in (
                (branch, seen.branch, merging.slot_head),
                (source, seen.other, merging.source_slot_head),
            ):
                if now.head != then.head or state.slot_head(now) != slots:
                    raise refusal(ref, "HEAD_MOVED", str(now.head), now.name)
            if len(state.slot_keys(merging.slot_head) | {slot.key for slot, _ in merging.slots}) > KEYS_MAX:
                raise refusal(ref, "TOO_MANY", "writes", str(KEYS_MAX))
            head, steps = branch.head, []
            for step, tokens in merging.steps:
                head = state.append(head, branch.name, step, tokens, body_digest(step, repr(ref).encode()))
                steps.append(head)
            raw = state.path_tokens(head) - state.path_tokens(branch.boundary)
            branch = replace(branch, head=head, depth=state.depth(head), raw_tokens=raw)
            state.branches[branch.name] = branch
            if merging.closes:
                state.branches[source.name] = entered(source, BranchState.MERGED, self._tick())
            made = state.append_slots(branch, merging.slot_head, merging.slots)
            position = state.commit(EventKind.MERGED, branch.name, (*steps, *made))
            return Merged(tuple(steps), made, merging.conflicts, branch, seen.common, position.revision)

        return state.once(request, write)


def _common(state: TwinTree, one: int, other: int) -> NodeId:
    above = {node.node_id for node in state.up(one)}
    return next((node.node_id for node in state.up(other) if node.node_id in above), ROOT)
