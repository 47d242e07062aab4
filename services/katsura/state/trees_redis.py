"""Memory trees in Valkey or Redis: one function call per operation (functions/memory_*.lua)."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any, Final

from katsura.domain.errors import ConflictError, NotFoundError
from katsura.domain.ids import DEFAULT_BRANCH, BranchName, NodeId, TenantId, TreeId
from katsura.domain.trees import (
    ROOT,
    ROOT_HASH,
    Branch,
    Durability,
    Effect,
    Hint,
    Judgement,
    Node,
    Request,
    Rest,
    Snapshot,
    StaleStep,
    StandingEffect,
    Summary,
    Tree,
)
from katsura.domain.usage import Counted, Usage
from katsura.domain.work import EXTERNAL, Fence
from katsura.state import keys
from katsura.state.branches_redis import RedisBranches
from katsura.state.cold_redis import RedisCold
from katsura.state.collecting_redis import RedisCollecting
from katsura.state.connect import Arg, Store
from katsura.state.contents_redis import RedisContents
from katsura.state.foreign_redis import RedisForeign
from katsura.state.leases_redis import RedisLeases
from katsura.state.merging_redis import RedisMerging
from katsura.state.objects import ObjectStore
from katsura.state.queue_redis import RedisQueue
from katsura.state.references_redis import RedisReferences
from katsura.state.slots_redis import RedisSlots
from katsura.state.tree_calls import (
    MEMORY_FUNCTIONS,
    NO_LIMIT,
    said_of,
    step_arguments,
)
from katsura.state.tree_records import (
    SALT_BYTES,
    check_chain,
    content_hash,
    digested_record,
    judgement_json,
    judgement_of,
    mark_of,
    pack_ids,
    policy_json,
    record_of,
    retention_json,
    unpack_ids,
)
from katsura.state.tree_replies import (
    ShownNodes,
    branch_of,
    effects_of,
    excerpt_of,
    index_name,
    link_hash,
    origin_json,
    position_of,
    stored_node,
    tree_of,
)
from katsura.state.tree_watch import TreeWatch
from katsura.state.trees import (
    TOKENIZERS_MAX,
    Cover,
    Grown,
    Limits,
    NewStep,
    NewTree,
    Path,
    Position,
    Retreat,
    Revised,
    TreeRef,
    Written,
)
from katsura.state.usage import Count, uncounted
from katsura.state.usage_redis import charges_of, counted_of

__all__ = ["MEMORY_FUNCTIONS", "RedisTreeStore"]

_PLANS_MAX: Final = 64
_HEADS_KEPT: Final = 16384
_SNAPSHOT_UNITS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class _Plan:
    """What Grow takes to be so: the node that the first new step follows, its content hash, and which steps are new.
    The hash tells everything: no other node, of this or another life of the tree, has it."""

    base: int
    base_hash: bytes
    fresh: frozenset[int]
    head: int


class RedisTreeStore(
    RedisCold,
    RedisContents,
    RedisSlots,
    RedisLeases,
    RedisBranches,
    RedisMerging,
    RedisQueue,
    RedisReferences,
    RedisForeign,
    RedisCollecting,
    TreeWatch,
):
    """Trees of all tenants in one store."""

    def __init__(
        self, store: Store, limits: Limits, count: Count = uncounted, objects: ObjectStore | None = None
    ) -> None:
        super().__init__(store, limits, count, objects)
        self._heads: OrderedDict[tuple[str, str, str], _Plan] = OrderedDict()
        self._shown_nodes = ShownNodes()

    @property
    def durability(self) -> Durability:
        """What an acknowledged write survives."""
        return self._store.promised

    async def create(self, ref: TreeRef, new: NewTree, request: Request) -> tuple[Tree, Branch]:
        """Make a tree with one empty branch."""
        await self._store.refresh()
        said = await self._write(
            ref,
            "create",
            request,
            self._store.incarnation,
            new.goal,
            json.dumps(new.pins),
            policy_json(new.policy),
            json.dumps(dict(new.labels)),
            new.policy.ttl_s * 1000,
            DEFAULT_BRANCH,
            new.policy.raw_token_limit,
            new.policy.rollup_fanout,
            origin_json(new.origin),
            new.agent_id,
            retention_json(new.policy.retention),
        )
        branch = branch_of(said["branch"])
        now = said["now"]
        self._count(ref.tenant, Usage(trees=1))
        await self._index(ref, index_name(ref, now), made=True)
        tree = Tree(
            ref.tree, new.goal, new.pins, new.policy, dict(new.labels), said["revision"], said["incarnation"],
            branch.name, 0, 1, now, now, 0, new.origin, new.agent_id,
        )  # fmt: skip
        return tree, branch

    async def read(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        """The tree and its branches in the order they were made."""
        tree, branches = await self._read(ref)
        await self._index(ref, index_name(ref, tree.create_ms))
        return tree, branches

    async def trees(self, tenant: TenantId, page_size: int, page_token: str) -> tuple[tuple[Tree, ...], str]:
        """Trees of a tenant, newest first; names whose tree is gone are removed from the index on the way."""
        index = keys.tree_index(tenant)
        newest = b"(" + page_token.encode() if page_token else b"+"
        names: list[bytes] = await self._store.command("ZREVRANGEBYLEX", index, newest, "-", "LIMIT", 0, page_size)
        trees = await asyncio.gather(*(self._listed(tenant, name) for name in names))
        gone = [name for name, tree in zip(names, trees, strict=True) if tree is None]
        if gone:
            await self._store.command("ZREM", index, *gone)
        return tuple(t for t in trees if t is not None), names[-1].decode() if len(names) == page_size else ""

    async def drop(self, ref: TreeRef) -> None:
        """Drop a tree and everything in it."""
        answer = await self._call(ref, "delete", self._limits.events, self._limits.replays)
        self._count(ref.tenant, Usage(-1, -answer[2], -answer[3]))
        await self._store.command("ZREM", keys.tree_index(ref.tenant), index_name(ref, int(answer[1])))

    async def grow(
        self,
        ref: TreeRef,
        branch: str,
        expected_head: int | None,
        steps: Sequence[NewStep],
        merge: bool,
        request: Request,
    ) -> Grown:
        """Append steps, all or none: one call where the plan fits, two after a walk or on a head not seen before."""
        namespace = keys.tree(ref.tenant, ref.tree, "")
        written = [digested_record(new.step, secrets.token_bytes(SALT_BYTES), namespace) for new in steps]
        records = [record for _, record in written]
        charges = charges_of([new.step for new in steps])
        plan = self._heads.get((ref.tenant, ref.tree, branch))
        if plan is not None and expected_head in (None, plan.base):
            plan = _Plan(plan.base, plan.base_hash, frozenset(range(len(steps))), plan.head)
        else:
            plan = _Plan(-1, b"", frozenset(), -1)
        head: int = plan.head
        for _ in range(_PLANS_MAX):
            hashes = _chain(plan, records)
            arguments: list[Arg] = [branch, -1 if expected_head is None else expected_head, plan.base]
            arguments += [plan.base_hash.hex(), int(merge), charges]
            for i, new in enumerate(steps):
                arguments += step_arguments(new.step, new.tokens, *written[i], hashes[i])
            answer = await self._write_answer(ref, "grow", request, *arguments)
            if answer[0] != b"REPLAN":
                self._added(ref, answer)
                said = await self._settled(ref, said_of(ref, answer))
                return self._grown(ref, branch, plan, hashes, said)
            base, base_hash, fresh, head = answer[1:]
            missing = frozenset(int(i) - 1 for i in fresh.split())
            plan = _Plan(base, bytes.fromhex(base_hash.decode()), missing, head)
        raise ConflictError(
            f"branch {branch!r} moved {_PLANS_MAX} times while this Grow was made; write to a branch of your own",
            metadata={"head": str(head), "branch": branch},
        )

    async def replayed(self, ref: TreeRef, request: Request) -> Written | Revised | None:
        """What `summarise`, `judge` or `revise` answered to this request before."""
        said = await self._replayed(ref, request)
        return None if said is None else await self._written(ref, said)

    async def cover(self, ref: TreeRef, branch: str, expected_head: int | None, last: int) -> Cover:
        """What a summary up to the step `last` (0: the head) would cover."""
        expected = -1 if expected_head is None else expected_head
        answer = await self._call(ref, "cover", branch, expected, last, read_only=True)
        found, parent, parent_hash, record, _, base, end, count, versions, tokens = answer[1:]
        previous = None
        if record:
            (previous,) = await self.nodes(ref, [parent], NO_LIMIT)
        return Cover(
            branch=branch_of(json.loads(found)),
            previous=previous,
            parent_hash=bytes.fromhex(parent_hash.decode()),
            base=NodeId(base),
            last=NodeId(end),
            count=count,
            versions=versions,
            tokens=tokens,
        )

    async def summarise(
        self,
        ref: TreeRef,
        cover: Cover,
        expected_head: int | None,
        summary: Summary,
        judgement: Judgement,
        request: Request,
        fence: Fence | None = None,
    ) -> Written:
        """Write a summary of `cover`; it becomes the branch's unless it FAILED."""
        record = record_of(summary, secrets.token_bytes(SALT_BYTES))
        said = await self._write_fenced(
            ref,
            "summarise",
            request,
            fence,
            cover.branch.name,
            -1 if expected_head is None else expected_head,
            cover.branch.summary_head,
            cover.previous.node_id if cover.previous else ROOT,
            cover.base,
            cover.last,
            cover.versions,
            int(judgement.status),
            record,
            content_hash(cover.parent_hash, record).hex(),
            summary.body_tokens,
            judgement_json(judgement),
            int(EXTERNAL in judgement.required),
        )
        written = await self._written(ref, said)
        assert isinstance(written, Written)
        return written

    async def judge(
        self,
        ref: TreeRef,
        branch: str,
        summary: Node,
        judgement: Judgement,
        request: Request,
        fence: Fence | None = None,
    ) -> Written:
        """Replace what is known about a summary, if it is still what `summary` shows."""
        assert summary.judgement is not None, "only summaries are judged"
        said = await self._write_fenced(
            ref,
            "judge",
            request,
            fence,
            branch,
            summary.node_id,
            summary.judgement.version,
            int(judgement.status),
            judgement_json(judgement),
        )
        written = await self._written(ref, said)
        assert isinstance(written, Written)
        return written

    async def summaries(self, ref: TreeRef, branch: str, most: int) -> tuple[tuple[Node, bool], ...]:
        """The branch's summaries, newest first, roll-ups standing for their covers."""
        answer = await self._call(ref, "summaries", branch, most, read_only=True)
        pairs = zip(answer[3::2], answer[2::2], strict=True)
        return tuple((stored_node(node), bool(tried)) for node, tried in pairs)

    async def roll_up(
        self, ref: TreeRef, branch: str, cover: Sequence[Node], summary: Summary, judgement: Judgement, request: Request
    ) -> Written:
        """Write a roll-up over summaries that follow each other."""
        record = record_of(summary, secrets.token_bytes(SALT_BYTES))
        parent = cover[0].parent_id
        before = (await self.nodes(ref, [parent], NO_LIMIT))[0].content_hash if parent else ROOT_HASH
        said = await self._write(
            ref,
            "roll_up",
            request,
            branch,
            int(judgement.status),
            record,
            content_hash(before, record).hex(),
            summary.body_tokens,
            judgement_json(judgement),
            *(node.node_id for node in cover),
        )
        written = await self._written(ref, said)
        assert isinstance(written, Written)
        return written

    async def retreat(self, ref: TreeRef, branch: str, expected_head: int | None, restore_after: int) -> Retreat:
        """What a Revise to `restore_after` (0: keep nothing) would leave behind."""
        expected = -1 if expected_head is None else expected_head
        answer = await self._call(ref, "retreat", branch, expected, restore_after, read_only=True)
        found, _, stored, hint, hint_hash, *effects = answer[1:]
        return Retreat(
            branch=branch_of(json.loads(found)),
            restore_after=NodeId(restore_after),
            first_action=excerpt_of(stored),
            previous_hint=NodeId(hint),
            previous_hash=bytes.fromhex(hint_hash.decode()),
            effects=tuple(chain.from_iterable(map(effects_of, effects[::2], effects[1::2]))),
        )

    async def revise(
        self,
        ref: TreeRef,
        retreat: Retreat,
        hint: Hint,
        tokens: int,
        new_branch: str,
        move_default: bool,
        request: Request,
    ) -> Revised:
        """Abandon the branch for a new one that ends at `retreat.restore_after` and carries `hint`."""
        record = record_of(hint, secrets.token_bytes(SALT_BYTES))
        effects = [[e.node_id, int(e.effect), e.undo_ref, e.excerpt] for e in retreat.effects]
        answer = await self._write_answer(
            ref,
            "revise",
            request,
            retreat.branch.name,
            retreat.branch.head,
            retreat.restore_after,
            new_branch,
            int(move_default),
            retreat.previous_hint,
            record,
            content_hash(retreat.previous_hash, record).hex(),
            tokens,
            json.dumps(effects),
        )
        self._added(ref, answer)
        said = await self._settled(ref, said_of(ref, answer))
        if len(answer) > 4:
            node = stored_node((said["ids"][0], answer[4], answer[5], b"", b"", b"", (), b"", ()))
            return _revised(said, node)
        revised = await self._written(ref, said)  # as it was answered before
        assert isinstance(revised, Revised)
        return revised

    async def fork(
        self,
        ref: TreeRef,
        branch: str,
        at_node: int,
        new_branch: str,
        request: Request,
        agent_id: str = "",
        held_by: str = "",
    ) -> tuple[Branch, Position]:
        """Name a new branch at a step of `branch` (0: its head, -1: the empty root)."""
        said = await self._write(ref, "fork", request, branch, at_node, new_branch, agent_id, held_by)
        return branch_of(said["branch"]), position_of(said)

    async def release(self, ref: TreeRef, branch: str, request: Request) -> Position:
        """Drop a branch that keeps a place."""
        return position_of(await self._write(ref, "release", request, branch))

    async def waiting(self, ref: TreeRef, branch: str) -> tuple[Branch, tuple[Node, ...]]:
        """The steps of a branch's path that wait, oldest first."""
        answer = await self._call(ref, "waiting", branch, read_only=True)
        return branch_of(json.loads(answer[1])), tuple(map(stored_node, answer[2:]))

    async def snapshot(
        self, ref: TreeRef, branch: str, token_limit: int, hint_limit: int, tokenizer: str, with_ids: bool
    ) -> Snapshot:
        """The newest part of a branch, in one call."""
        shown_node = self._shown_nodes.of
        answer = await self._call(
            ref,
            "context",
            branch,
            token_limit,
            _SNAPSHOT_UNITS_MAX,
            hint_limit,
            tokenizer,
            int(with_ids),
            read_only=True,
        )
        meta, found, (root_count, root_ids), *units, stale, unsettled, waiting = answer[1:]
        if unsettled:  # what an earlier process did not come to
            await self._settle(ref)
            return await self.snapshot(ref, branch, token_limit, hint_limit, tokenizer, with_ids)
        steps, summaries, hints = (tuple(shown_node(unit) for unit in reversed(part)) for part in units[:3])
        *rests, slots = units[3:]
        return Snapshot(
            tree=tree_of(ref, meta),
            branch=branch_of(json.loads(found)),
            steps=steps,
            summaries=summaries,
            hints=hints,
            steps_rest=Rest(*rests[0]),
            summaries_rest=Rest(*rests[1]),
            hints_rest=Rest(*rests[2]),
            root_count=None if root_count < 0 else root_count,
            root_ids=unpack_ids(root_ids),
            slots=tuple(map(shown_node, slots)),
            waiting=tuple(map(shown_node, waiting)),
            stale=tuple(StaleStep(NodeId(n), mark_of(mark), depth) for n, *mark, depth in stale),
        )

    async def redact(self, ref: TreeRef, node_ids: Sequence[int], request: Request) -> tuple[tuple[NodeId, ...], int]:
        """Destroy content and salt of nodes, and forget what snapshots have shown."""
        try:
            return await super().redact(ref, node_ids, request)
        finally:
            self._shown_nodes = ShownNodes()

    async def note_cut(self, ref: TreeRef, branch: BranchName, cut: int) -> None:
        """Remember where the last assembly cut. Not a commit."""
        await self._call(ref, "note_cut", branch, cut)

    async def path(
        self, ref: TreeRef, branch: str, end_node: int, page_size: int, bytes_max: int, above: int = 0
    ) -> Path:
        """Steps of a branch's path, each checked against its content hash."""
        answer = await self._call(ref, "path", branch, end_node, page_size, bytes_max, above, read_only=True)
        found, next_end, *nodes = answer[1:]
        for node, parent in pairwise(nodes):
            check_chain(node[0], link_hash(parent[1]), node[2], link_hash(node[1]))
        return Path(tuple(stored_node(n) for n in reversed(nodes)), NodeId(next_end), branch_of(json.loads(found)))

    async def nodes(self, ref: TreeRef, node_ids: Sequence[int], bytes_max: int) -> tuple[Node, ...]:
        """Nodes by id, in the order asked for."""
        answer = await self._call(ref, "nodes", bytes_max, *node_ids, read_only=True)
        return tuple(stored_node(n) for n in answer[1:])

    async def attach(self, ref: TreeRef, tokenizer: str, tokens: Mapping[int, Sequence[int]]) -> tuple[NodeId, ...]:
        """Attach rendered token ids; the ids of nodes that had some and kept them."""
        pairs: list[Arg] = [part for node, ids in tokens.items() for part in (node, pack_ids(ids))]
        answer = await self._call(ref, "attach", tokenizer, TOKENIZERS_MAX, *pairs)
        return tuple(NodeId(n) for n in answer[1:])

    async def counted(self, ref: TreeRef) -> Counted:
        """What a tree takes, and whom its steps are charged to."""
        _, nodes, size, flat = await self._call(ref, "usage", read_only=True)
        return counted_of(nodes, size, dict(zip(flat[::2], flat[1::2], strict=True)))

    async def _listed(self, tenant: TenantId, name: bytes) -> Tree | None:
        try:
            return await self.shown(TreeRef(tenant, TreeId(name.decode().partition(":")[2])))
        except NotFoundError:
            return None

    async def _written(self, ref: TreeRef, said: Mapping[str, Any]) -> Written | Revised:
        (node,) = await self.nodes(ref, list(said["ids"]), NO_LIMIT)
        if "abandoned" in said:
            return _revised(said, node)
        assert node.judgement is not None, "the functions write a verdict with each summary"
        node = replace(node, judgement=judgement_of(said["judgement"], said.get("version", node.judgement.version)))
        return Written(node, branch_of(said["branch"]), position_of(said))

    def _grown(self, ref: TreeRef, branch: str, plan: _Plan, hashes: Sequence[bytes], said: Mapping[str, Any]) -> Grown:
        grown = Grown(
            node_ids=tuple(NodeId(n) for n in said["ids"]),
            merged=tuple(said["merged"]),
            branch=branch_of(said["branch"]),
            position=position_of(said),
            compress_due=said["compress_due"],
        )
        if plan.fresh and not grown.merged[-1]:
            # Wrong where this answer repeats an older one (other salts): the next Grow is then told to plan again.
            at = (ref.tenant, ref.tree, branch)
            self._heads[at] = _Plan(grown.node_ids[-1], hashes[-1], plan.fresh, grown.node_ids[-1])
            self._heads.move_to_end(at)
            if len(self._heads) > _HEADS_KEPT:
                self._heads.popitem(last=False)
        return grown


def _revised(said: Mapping[str, Any], hint: Node) -> Revised:
    effects = tuple(
        StandingEffect(NodeId(n), Effect(effect), undo, text) for n, effect, undo, text in json.loads(said["effects"])
    )
    return Revised(branch_of(said["branch"]), branch_of(said["abandoned"]), hint, effects, position_of(said))


def _chain(plan: _Plan, records: Sequence[bytes]) -> list[bytes]:
    """Content hashes of the steps that the plan takes to be new (empty for the others), chained."""
    at, hashes = plan.base_hash, []
    for i, record in enumerate(records):
        if i in plan.fresh:
            at = content_hash(at, record)
        hashes.append(at if i in plan.fresh else b"")
    return hashes
