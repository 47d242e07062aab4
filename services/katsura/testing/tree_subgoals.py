"""Subgoals of a random life: begun, stated and ended, each told apart from what the model says it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from katsura.domain.errors import FailedPreconditionError, Reason
from katsura.domain.trees import Node, Step, Summary, Verdict
from katsura.memory.core.validate import CRITERION
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.memory.subgoals import Closing
from katsura.state.trees import TreeRef, Written
from katsura.testing.tree_checks import Held, immutable

_CRITERION: Final = "it holds"
STATED: Final = CRITERION + _CRITERION
"""Attribute of the steps that say whether the criterion of subgoals holds."""


@dataclass(frozen=True)
class Ending:
    """How a subgoal is ended, and what is expected of it.

    Attributes:
        asked: which one (0: the innermost), with which results.
        begun: depth at which that began; 0 where none may be ended so.
        first: depth of the first step that its summary covers.
        outcome: how it went.
    """

    asked: int
    results: dict[str, Verdict]
    begun: int
    first: int
    outcome: Verdict


class SubgoalLife(Held):
    """What befalls the subgoals of one tree."""

    def __init__(self, memory: Memory, ref: TreeRef) -> None:
        super().__init__(memory, ref)
        self.parents: dict[int, tuple[int | None, int]] = {}
        self.ends: dict[int, Ending] = {}

    async def begin_subgoal(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """One that says which it is part of, rightly or (amount 0) as if there were none."""
        path, around = await self.path(branch), self.open_subgoals(branch)
        inner = path[around[-1] - 1].node_id if around else 0
        asked, inner = self.parents.setdefault(number, (0 if amount == 0 else inner if flag else None, inner))
        write = Write(f"B{number}", self.ref, branch, None, True)
        try:
            begun = await self.memory.begin_subgoal(write, f"does {number}", [_CRITERION] if flag else [], asked)
        except FailedPreconditionError as error:
            if error.reason is Reason.SUBGOAL_OPEN and asked == inner:
                raise AssertionError("the one it is part of was named") from error
            raise
        assert asked in (None, inner), "it is not told under another parent"
        assert begun.parent == inner
        if number not in self.noted:
            self._append(number, branch, begun.node)
            self.subgoals[branch].append((begun.node.depth, 0))
        return begun

    async def end_subgoal(self, number: int, branch: str, amount: int, flag: bool) -> object:
        """One that is ended is covered by a summary of its own, from its first step (or the last boundary) on."""
        if number not in self.ends:
            self.ends[number] = await self._ending(branch, amount, flag)
        ending = self.ends[number]
        write = Write(f"E{number}", self.ref, branch, None, True)
        try:
            ended = await self.memory.end_subgoal(write, ending.asked, ending.results, Closing())
        except FailedPreconditionError as error:
            if error.reason in (Reason.SUBGOAL_OPEN, Reason.NOT_WAITING) and ending.begun:
                raise AssertionError("the innermost one may be ended") from error
            raise
        assert ending.begun, "only the innermost one is ended, once"
        assert ended.outcome is ending.outcome
        assert isinstance(ended.closed, Written)
        summary = ended.closed.node.body
        assert isinstance(summary, Summary)
        assert summary.last_covered == ended.node.node_id
        assert summary.covered_count == ended.node.depth - ending.first + 1, "it stands for its steps, no more, no less"
        if number not in self.noted:
            self._append(number, branch, ended.node)
            self.subgoals[branch].append((ended.node.depth, ending.begun))
            if ending.outcome is not Verdict.UNKNOWN:
                self.stated[branch].append((ended.node.depth, ending.outcome is Verdict.PASS))
        return ended.node, ended.outcome, ended.closed.node.node_id, ended.closed.node.body

    async def _ending(self, branch: str, amount: int, flag: bool) -> Ending:
        path, around = await self.path(branch), self.open_subgoals(branch)
        if not around:
            return Ending(amount, {}, 0, 0, Verdict.UNKNOWN)
        outer, begun = around[0], around[-1]
        asked = 0 if amount % 3 == 0 else path[(outer if flag else begun) - 1].node_id
        first = path[begun - 1]
        assert isinstance(first.body, Step)
        outcome, results = Verdict.UNKNOWN, dict[str, Verdict]()
        if STATED in first.body.attributes:
            said = [holds for depth, holds in self.stated[branch] if depth > begun and not path[depth - 1].redacted]
            outcome = (Verdict.PASS if said[-1] else Verdict.FAIL) if said else Verdict.UNKNOWN
            if amount % 2:
                outcome = Verdict.PASS if flag else Verdict.FAIL
                results = {_CRITERION: outcome}
        closed = await self._closed(branch, path)
        return Ending(asked, results, begun if asked in (0, first.node_id) else 0, max(begun, closed + 1), outcome)

    async def _closed(self, branch: str, path: Sequence[Node]) -> int:
        """Depth of the last step that a summary of a branch stands for."""
        try:
            base = (await self.memory.trees.cover(self.ref, branch, None, 0)).base
        except FailedPreconditionError:
            return len(path)
        return next((node.depth for node in path if node.node_id == base), 0)

    async def state_criterion(self, number: int, branch: str, flag: bool) -> object:
        """Two steps that say whether the criterion holds: the later one is right."""
        said = {True: "pass", False: "fail"}
        steps = [Step(f"does {number}", attributes={STATED: said[holds]}) for holds in (not flag, flag)]
        grown = await self.grow_steps(f"g{number}", branch, steps, True)
        if number not in self.noted:
            self.noted.add(number)
            depth = len(self.model[branch])
            self.stated[branch] += [(depth - 1, not flag), (depth, flag)]
        return grown

    def _append(self, number: int, branch: str, node: Node) -> None:
        assert isinstance(node.body, Step)
        self.noted.add(number)
        self.nodes.setdefault(node.node_id, immutable(node))
        self.model[branch].append(node.body.content)
