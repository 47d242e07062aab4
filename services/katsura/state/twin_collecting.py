"""Collecting what nobody can reach, in memory: the twin of `collecting_redis`."""

from __future__ import annotations

from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Branch, EventKind, Node, Step, Summary
from katsura.state.collecting import HOLDS_PER_CALL, LOOKS_MIN, Collectable, Collected
from katsura.state.contents import TreeRef
from katsura.state.tree_records import stored_size
from katsura.state.trees import refusal
from katsura.state.twin_contents import erase
from katsura.state.twin_tree import TwinForest, TwinTree


class TwinCollecting(TwinForest):
    """The part of the twin that forgets."""

    async def retentions(
        self, tenant: TenantId, page_size: int, page_token: str
    ) -> tuple[tuple[tuple[TreeId, Retention | None, bool], ...], str]:
        """The trees of a tenant that are in the store, with what each keeps and whether it refers to others."""
        mine = {
            f"{state.tree.create_ms:013}:{ref.tree}": (ref.tree, state.tree.policy.retention, bool(state.doubts.looked))
            for ref, state in self._trees.items()
            if ref.tenant == tenant
        }
        names = sorted((name for name in mine if not page_token or name < page_token), reverse=True)[:page_size]
        return tuple(mine[name] for name in names), names[-1] if len(names) == page_size else ""

    async def claim_collecting(self, ref: TreeRef, keep: Retention, worker: str, lease_ms: int) -> int:
        """The fencing token of a claim to collect; 0 where nothing is to be done."""
        state, now = self._state(ref), self._tick()
        later = state.garbage_at is None or state.tree.revision < state.garbage_at
        if not _retired(state, keep, now) and not state.collected and later:
            return 0
        _, end_ms, other = state.collector
        if end_ms > now and other != worker:
            return 0
        state.claims += 1
        state.collector = (state.claims, now + lease_ms, worker)
        return state.claims

    async def collectable(self, ref: TreeRef, keep: Retention, looks: int, after: int) -> Collectable:
        """What collecting would drop and erase."""
        state = self._state(ref)
        gone = _retired(state, keep, self._tick())
        dead, last = _dead(state, keep, gone, looks, after)
        size = sum(stored_size(state.shown(node.node_id)) for node in dead)
        ids = tuple(node.node_id for node in dead)
        return Collectable(gone, ids, size, NodeId(last), last == state.tree.node_count)

    async def collect(self, ref: TreeRef, keep: Retention, looks: int, token: int = 0) -> Collected:
        """Drop abandoned branches and the content of what nobody can reach."""
        state = self._state(ref)
        if token and token != state.collector[0]:
            raise refusal(ref, "LEASE_LOST", "collect", "taken")
        gone = _retired(state, keep, self._tick())
        if not state.collected and state.garbage_at is not None and state.tree.revision >= state.garbage_at:
            state.garbage_at = None
        if gone:
            state.garbage_at = state.tree.revision + keep.revisions + 1
        dead, last = _dead(state, keep, gone, looks, state.collected)
        for node in dead:
            erase(state, node)
            if isinstance(node.body, Step) and node.body.client_step_id:
                state.steps.pop((node.birth_branch, node.body.client_step_id))
        for name in gone:
            del state.branches[name]
            state.slot_heads.pop(name, None)
        state.gone.update(gone)
        state.events = [e for e in state.events if e.position.revision > state.tree.revision - keep.revisions]
        done = last == state.tree.node_count
        state.collected = 0 if done else last
        if done and token:
            state.collector = (0, 0, "")
        ids = tuple(node.node_id for node in dead)
        if ids or gone:
            state.commit(EventKind.COLLECTED, "", ids)
        return Collected(gone, ids, done)


def _retired(state: TwinTree, keep: Retention, now: int) -> tuple[str, ...]:
    """Abandoned branches that do not stay: neither among the newest, nor owed anything, nor worked on."""
    left = [b for b in state.branches.values() if b.left and b.name != state.tree.default_branch]
    left.sort(key=lambda b: b.order, reverse=True)
    living = {node.node_id for b in state.branches.values() if b not in left for node in state.up(b.head)}
    worked = {item.branch for item in state.work.values() if item.worker and item.lease_end_ms > now}

    def goes(i: int, branch: Branch) -> bool:
        old = keep.abandoned_s > 0 and branch.left_ms > 0 and now - branch.left_ms >= keep.abandoned_s * 1000
        owed = set(state.waiting_at(branch.head)) - living
        return (i >= keep.abandoned or old) and branch.name not in worked and not owed

    return tuple(sorted(b.name for i, b in enumerate(left) if goes(i, b)))


def _dead(state: TwinTree, keep: Retention, gone: tuple[str, ...], looks: int, after: int) -> tuple[list[Node], int]:
    """Nodes that nobody can reach once `gone` is dropped, among those looked at, and the last of these."""
    stay = [b for name, b in state.branches.items() if name not in gone]
    looks = min(looks, max(LOOKS_MIN, HOLDS_PER_CALL // (len(stay) + 1)))
    last = min(after + looks, state.tree.node_count)
    newest = state.tree.revision - keep.revisions
    found = [state.nodes[NodeId(n)] for n in range(after + 1, last + 1)]
    reached = _reached(state, stay)
    return [n for n in found if n.revision <= newest and not n.redacted and n.node_id not in reached], last


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
