"""Collecting what nobody can reach, in memory: the twin of `collecting_redis`."""

from __future__ import annotations

from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, EventKind, Node, Step, Summary
from katsura.state.collecting import HOLDS_PER_CALL, LOOKS_MIN, Collected, Retention
from katsura.state.contents import TreeRef
from katsura.state.twin_contents import erase
from katsura.state.twin_tree import TwinForest, TwinTree


class TwinCollecting(TwinForest):
    """The part of the twin that forgets."""

    async def collect(self, ref: TreeRef, keep: Retention, looks: int) -> Collected:
        """Drop abandoned branches and the content of what nobody can reach."""
        state = self._state(ref)
        left = [b for b in state.branches.values() if b.left and b.name != state.tree.default_branch]
        left.sort(key=lambda b: b.order, reverse=True)
        gone = tuple(sorted(b.name for b in left[keep.abandoned :]))
        stay = [b for name, b in state.branches.items() if name not in gone]
        looks = min(looks, max(LOOKS_MIN, HOLDS_PER_CALL // (len(stay) + 1)))
        last = min(state.collected + looks, state.tree.node_count)
        newest = state.tree.revision - keep.revisions
        found = [state.nodes[NodeId(n)] for n in range(state.collected + 1, last + 1)]
        reached = _reached(state, stay)
        dead = [n for n in found if n.revision <= newest and not n.redacted and n.node_id not in reached]
        for node in dead:
            erase(state, node)
            if isinstance(node.body, Step) and node.body.client_step_id:
                state.steps.pop((node.birth_branch, node.body.client_step_id))
        for name in gone:
            del state.branches[name]
            state.slot_heads.pop(name, None)
        state.gone.update(gone)
        state.events = [e for e in state.events if e.position.revision > newest]
        done = last == state.tree.node_count
        state.collected = 0 if done else last
        ids = tuple(node.node_id for node in dead)
        if ids or gone:
            state.commit(EventKind.COLLECTED, "", ids)
        return Collected(gone, ids, done)


def _reached(state: TwinTree, stay: list[Branch]) -> set[NodeId]:
    """Every node that somebody can reach."""
    heads = [(b.head, b.summary_head, b.hint, state.slot_head(b)) for b in stay]
    reached = {node.node_id for each in heads for head in each for node in state.up(head)}
    reached |= {n.node_id for n in state.nodes.values() if isinstance(n.body, Step) and not n.body.harmless}
    while True:
        more = {r.node_id for n in reached for r in state.doubts.references.get(n, ()) if not r.tree_id}
        more |= {n.node_id for n in state.nodes.values() if _covers(state, n, reached)}
        if more <= reached:
            return reached
        reached |= more


def _covers(state: TwinTree, node: Node, reached: set[NodeId]) -> bool:
    return isinstance(node.body, Summary) and state.span(node.node_id)[1] in reached
