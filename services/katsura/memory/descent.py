"""Trees forked off trees: a saga of two writes. The source keeps the place first, so what a new tree goes on from is
there for as long as the tree is; a place kept for a tree that was never made is given up when the source is dropped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from katsura.domain.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, Reason
from katsura.domain.ids import TreeId, checked_name
from katsura.domain.trees import ROOT, ROOT_HASH, Branch, Origin, Snapshot, Tree, request_of
from katsura.memory.core import limits
from katsura.memory.core.descent import joined
from katsura.memory.operations import ID_MAX, Operations, committing
from katsura.state.trees import NewTree, Position, TreeRef, refusal

_FORKS_MAX: Final = 16
"""Trees that one may be forked off one after the other."""


@dataclass(frozen=True, slots=True)
class Offshoot:
    """What a tree is forked off, and for whom. `at_node` 0 is the branch's head, -1 the empty root."""

    branch: str
    at_node: int
    goal: str
    agent_id: str


class Descent(Operations):
    """The operations on trees that hang together."""

    async def fork(
        self, ref: TreeRef, request_id: str, branch: str, at_node: int, new_branch: str, agent_id: str = ""
    ) -> tuple[Branch, Position]:
        """Name a new branch at any step of a branch."""
        limits.check_text(request_id, "request_id")
        limits.check_text(agent_id, "agent_id")
        limits.check_range(at_node, "at_node", -1, ID_MAX)
        if new_branch:
            checked_name(new_branch, "new_branch")
        request = request_of(request_id, "fork", branch, at_node, new_branch, *([agent_id] if agent_id else []))
        with committing("fork"):
            return await self._trees.fork(ref, branch, at_node, new_branch, request, agent_id)

    async def fork_tree(self, ref: TreeRef, request_id: str, new_tree: str, off: Offshoot) -> tuple[Tree, Branch]:
        """Begin a new tree at any step of a branch."""
        limits.check_text(request_id, "request_id")
        limits.check_text(off.agent_id, "agent_id")
        limits.check_range(off.at_node, "at_node", -1, ID_MAX)
        limits.check_tree(off.goal, (), {})
        if limits.check_tree_id(new_tree) == ref.tree:
            raise limits.refuse("new_tree_id", "it is the tree itself")
        source, _ = await self._trees.read(ref)
        if await self._generation(ref, source) >= _FORKS_MAX:
            raise limits.refuse("tree_id", f"it is the {_FORKS_MAX}th of a line of forks; no more are taken")
        made = TreeRef(ref.tenant, TreeId(new_tree))
        with committing("fork"):
            kept = await self._keep_place(ref, new_tree, off)
            depth, tokens = (source.origin.depth, source.origin.tokens) if source.origin else (0, 0)
            origin = Origin(ref.tree, kept.name, kept.head, ROOT_HASH.hex(), depth + kept.depth, tokens)
            if kept.head != ROOT:
                (node,) = await self._trees.nodes(ref, [kept.head], limits.ANSWER_BYTES_MAX)
                origin = replace(origin, content_hash=node.content_hash.hex(), tokens=tokens + node.path_tokens)
            policy = limits.complete_policy(source.policy, self._trees.durability)
            new = NewTree(off.goal or source.goal, source.pins, policy, {}, origin, off.agent_id)
            request = request_of(request_id, "fork_tree", ref.tree, off)
            try:
                return await self._trees.create(made, new, request)
            except AlreadyExistsError:
                if not await self._needs(made, ref, kept):
                    await self._trees.release(ref, kept.name, request_of("", "release"))
                raise

    async def delete_tree(self, ref: TreeRef) -> None:
        """Drop a tree and everything in it, and give up the place that another tree keeps for it."""
        tree, branches = await self._trees.read(ref)
        with committing("delete"):
            try:
                await self._trees.drop(ref)
            except FailedPreconditionError:
                for branch in (b for b in branches if b.held_by):
                    if not await self._needs(TreeRef(ref.tenant, TreeId(branch.held_by)), ref, branch):
                        await self._give_up(ref, branch.name)
                await self._trees.drop(ref)
        if tree.origin is not None:
            await self._give_up(TreeRef(ref.tenant, TreeId(tree.origin.tree_id)), tree.origin.branch)

    async def _snapshot(self, ref: TreeRef, branch: str, room: int, tokenizer: str, with_ids: bool) -> Snapshot:
        """A branch with everything that its tree was forked off before it."""
        after = await self._trees.snapshot(ref, branch, room, limits.HINTS_MAX, tokenizer, with_ids)
        origin = after.tree.origin
        if origin is None:
            return after
        source = TreeRef(ref.tenant, TreeId(origin.tree_id))
        try:
            before = await self._snapshot(source, origin.branch, room, tokenizer, with_ids)
        except NotFoundError:
            return after  # an imported tree whose origin is not here
        return joined(before, after, origin)

    async def _generation(self, ref: TreeRef, tree: Tree) -> int:
        count = 0
        while tree.origin is not None and count < _FORKS_MAX:
            count += 1
            try:
                tree, _ = await self._trees.read(TreeRef(ref.tenant, TreeId(tree.origin.tree_id)))
            except NotFoundError:
                break
        return count

    async def _keep_place(self, ref: TreeRef, new_tree: str, off: Offshoot) -> Branch:
        """The branch that keeps the place, which an attempt before may have made."""
        name = "tree:" + blake2b(new_tree.encode(), digest_size=12).hexdigest()
        request = request_of("", "keep")
        try:
            kept, _ = await self._trees.fork(ref, off.branch, off.at_node, name, request, off.agent_id, new_tree)
        except AlreadyExistsError as error:
            if error.reason is not Reason.BRANCH_EXISTS:
                raise
            _, branches = await self._trees.read(ref)
            kept = next(b for b in branches if b.name == name)
            if off.at_node not in (0, kept.head or -1):
                raise refusal(TreeRef(ref.tenant, TreeId(new_tree)), "TREE_EXISTS") from None
        return kept

    async def _needs(self, child: TreeRef, ref: TreeRef, kept: Branch) -> bool:
        """Whether a place is kept for a tree that is there."""
        try:
            origin = (await self._trees.read(child))[0].origin
        except NotFoundError:
            return False
        return origin is not None and (origin.tree_id, origin.branch) == (ref.tree, kept.name)

    async def _give_up(self, ref: TreeRef, branch: str) -> None:
        try:
            await self._trees.release(ref, branch, request_of("", "release"))
        except NotFoundError:
            return  # given up by somebody else, or gone with its tree
