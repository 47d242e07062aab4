"""Subgoals by name: a step begins one, a later step of the same path ends it, a summary stands for what lies between.

The step that begins one waits for its end (waits.py), so forks, Revise and contexts treat it as what it is: owed on
every path that holds it, until it is ended there, once. Subgoals nest: the one begun last is ended first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katsura.domain.errors import ConflictError, FailedPreconditionError, Reason
from katsura.domain.ids import NodeId
from katsura.domain.trees import (
    ROOT,
    Branch,
    Node,
    Request,
    Resolution,
    Step,
    SummaryBody,
    Verdict,
    Wait,
    WaitKind,
    request_of,
)
from katsura.domain.units import KIB
from katsura.domain.work import EXTERNAL, WorkItem
from katsura.memory.core import limits
from katsura.memory.core.compress import CLOSES, OPENS
from katsura.memory.core.tokens import estimate_step, wait_text
from katsura.memory.core.validate import CRITERION
from katsura.memory.operations import ID_MAX, Write, committing
from katsura.memory.summaries import Summaries, check_count, check_waited_for
from katsura.state.trees import Grown, NewStep, TreeRef, Written, refusal

PARENT: Final = "subgoal.parent"
"""Attribute of the step that begins a subgoal: the subgoal it is part of."""
_SAID: Final = {Verdict.PASS: "pass", Verdict.FAIL: "fail"}
_NOTHING: Final = Step("never written")


@dataclass(frozen=True, slots=True)
class Begun:
    """The step that begins a subgoal, the subgoal it is part of (ROOT: none), the branch and revision afterwards."""

    node: Node
    parent: NodeId
    branch: Branch
    revision: int


@dataclass(frozen=True, slots=True)
class Closing:
    """How a subgoal is to be summarised: as Compress."""

    body: SummaryBody | None = None
    compressor: str = ""
    validators: tuple[str, ...] = ()
    proceed: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """The step that ends a subgoal, whether it succeeded by its criteria, and its summary or the task to write one
    (neither where somebody else's summary covers that step)."""

    node: Node
    outcome: Verdict
    closed: Written | WorkItem | None
    branch: Branch
    revision: int

    @property
    def subgoal(self) -> NodeId:
        """The subgoal that it ends."""
        return _step(self.node).resolves


class Subgoals(Summaries):
    """The operations on subgoals."""

    async def begin_subgoal(self, write: Write, title: str, criteria: Sequence[str], parent: int | None) -> Begun:
        """Append the step that begins a subgoal; `parent` is the innermost open one that the caller has seen."""
        write = write.checked()
        _check_begin(title, criteria, parent)
        fields = (write.branch, write.expected_head, write.unconditional, title, tuple(criteria), parent)
        request = write.under(request_of(write.request_id, "begin_subgoal", *fields))

        async def beginning(branch: Branch, around: Sequence[Node]) -> Step:
            inner = around[-1].node_id if around else ROOT
            if parent is not None and parent != inner:
                if parent != ROOT and all(node.node_id != parent for node in around):
                    raise refusal(write.tree, "NOT_WAITING", str(parent))
                raise _still_open(inner)
            return _beginning(title, criteria, inner)

        with committing("begin_subgoal"):
            grown = await self._append(write, request, beginning)
        (node,) = await self._trees.nodes(write.tree, grown.node_ids, limits.ANSWER_BYTES_MAX)
        part_of = NodeId(int(_step(node).attributes.get(PARENT, ROOT)))
        return Begun(node, part_of, grown.branch, grown.position.revision)

    async def end_subgoal(
        self, write: Write, subgoal_id: int, results: Mapping[str, Verdict], closing: Closing
    ) -> Ended:
        """Append the step that ends a subgoal (0: the innermost), then close its segment with a summary."""
        write = write.checked()
        limits.check_range(subgoal_id, "subgoal_id", 0, ID_MAX)
        policy = await self._policy(write.tree, write.branch)
        outside = closing.body is None and (closing.compressor or policy.compressor) == EXTERNAL
        _check_closing(closing, closing.validators or policy.validators, outside)
        fields = (write.branch, write.expected_head, write.unconditional, subgoal_id, dict(results), closing)
        request = write.under(request_of(write.request_id, "end_subgoal", *fields))

        async def ending(branch: Branch, around: Sequence[Node]) -> Step:
            inner = around[-1] if around else None
            if inner is None or (subgoal_id and all(node.node_id != subgoal_id for node in around)):
                raise refusal(write.tree, "NOT_WAITING", str(subgoal_id))
            if subgoal_id and subgoal_id != inner.node_id:
                raise _still_open(inner.node_id)
            if branch.head != branch.boundary:
                check_count((await self._trees.cover(write.tree, branch.name, branch.head, 0)).count + 1)
            return _ending(inner, await self._told(write.tree, branch, inner, results))

        with committing("end_subgoal"):
            grown = await self._append(write, request, ending)
        (node,) = await self._trees.nodes(write.tree, grown.node_ids, limits.ANSWER_BYTES_MAX)
        later = replace(write, branch=grown.branch.name, expected_head=None, unconditional=True, lease_token=0)
        closed = await self._close(later, node, closing, outside)
        branch, revision = grown.branch, grown.position.revision
        if isinstance(closed, Written):
            branch, revision = closed.branch, closed.position.revision
        return Ended(node, _outcome(_step(node)), closed, branch, revision)

    async def _append(
        self, write: Write, request: Request, made: Callable[[Branch, Sequence[Node]], Awaitable[Step]]
    ) -> Grown:
        """Append what `made` makes of a branch and its open subgoals, outermost first, unless that was done before."""

        async def attempt() -> Grown:
            branch, waiting = await self._trees.waiting(write.tree, write.branch)
            if write.expected_head not in (None, branch.head):
                raise refusal(write.tree, "HEAD_MOVED", str(branch.head), branch.name)
            new = await made(branch, [node for node in waiting if _begins(node)])
            steps = [NewStep(new, estimate_step(new))]
            return await self._trees.grow(write.tree, write.branch, branch.head, steps, False, request)

        if write.request_id:
            try:  # no head is ID_MAX: it is answered where it was done before, and else writes nothing
                return await self._trees.grow(write.tree, write.branch, ID_MAX, [NewStep(_NOTHING, 0)], False, request)
            except ConflictError as error:
                if error.reason is not Reason.HEAD_MOVED:
                    raise
        return await self._until_it_holds(write, attempt)

    async def _told(self, ref: TreeRef, branch: Branch, begun: Node, results: Mapping[str, Verdict]) -> dict[str, str]:
        """What is known of each criterion of a subgoal: what the caller knows, else what a step since said last."""
        criteria = [key for key in _step(begun).attributes if key.startswith(CRITERION)]
        for name, verdict in results.items():
            if CRITERION + name not in criteria:
                raise limits.refuse(f"results[{name[:32]!r}]", f"subgoal {begun.node_id} has no such criterion")
            if verdict not in _SAID:
                raise limits.refuse(f"results[{name[:32]!r}]", "say PASS or FAIL, or leave it out")
        told = {CRITERION + name: _SAID[verdict] for name, verdict in results.items()}
        end = branch.head
        while end != ROOT and len(told) < len(criteria):
            page = await self._trees.path(ref, branch.name, end, limits.PAGE_MAX, limits.ANSWER_BYTES_MAX, begun.depth)
            for node in reversed(page.nodes):
                said = _step(node).attributes
                told.update({k: said[k] for k in criteria if k not in told and said.get(k) in _SAID.values()})
            end = page.next_end
        return {key: told.get(key, "") for key in criteria}

    async def _close(self, write: Write, ended: Node, closing: Closing, outside: bool) -> Written | WorkItem | None:
        """Summarise the subgoal that the step `ended` ends, and on its own what was raw before it began."""
        how = (tuple(closing.validators), closing.proceed)
        if outside:
            return await self._compressed(write, "/all", 0, None, closing.compressor, *how)
        (begun,) = await self._trees.nodes(write.tree, [_step(ended).resolves], limits.ANSWER_BYTES_MAX)
        policy = await self._policy(write.tree, write.branch)
        if begun.parent_id != ROOT and (closing.compressor or policy.compressor) != EXTERNAL:
            await self._compressed(write, "/before", begun.parent_id, None, closing.compressor, *how)
        body = closing.body
        if body is not None:
            _, waiting = await self._trees.waiting(write.tree, write.branch)
            owed = [wait_text(wait) for node in waiting if (wait := _step(node).wait) and _begins(node)]
            body = replace(body, open_obligations=tuple(dict.fromkeys((*body.open_obligations, *owed))))
        return await self._compressed(write, "/itself", ended.node_id, body, closing.compressor, *how)

    async def _compressed(
        self,
        write: Write,
        part: str,
        last: int,
        body: SummaryBody | None,
        compressor: str,
        validators: Sequence[str],
        proceed: bool,
    ) -> Written | WorkItem | None:
        """Compress under a request id of its own; None where somebody's summary covers it already."""
        request_id = write.request_id and write.request_id + part
        try:
            return await self.compress(
                replace(write, request_id=request_id), last, body, compressor, validators, proceed
            )
        except FailedPreconditionError as error:
            if error.reason is not Reason.BAD_BOUNDARY:
                raise
            return None


def _check_begin(title: str, criteria: Sequence[str], parent: int | None) -> None:
    if not limits.check_text(title, "title", KIB).strip():
        raise limits.refuse("title", "it is empty; say what is to be achieved")
    if len(criteria) > limits.CRITERIA_MAX:
        raise limits.refuse("criteria", f"{len(criteria)} entries; at most {limits.CRITERIA_MAX} are taken")
    for i, name in enumerate(criteria):
        if not limits.check_text(name, f"criteria[{i}]", KIB).strip():
            raise limits.refuse(f"criteria[{i}]", "it is empty; name what must hold")
        if name in criteria[:i]:
            raise limits.refuse(f"criteria[{i}]", f"{name[:32]!r} is named twice")
    if parent is not None:
        limits.check_range(parent, "parent_subgoal", 0, ID_MAX)


def _check_closing(closing: Closing, required: Sequence[str], outside: bool) -> None:
    """Refuse what Compress would refuse, before anything is written."""
    limits.check_validators(closing.validators, "validators")
    if closing.compressor:
        limits.check_compressor(closing.compressor, "compressor")
    if closing.body is not None:
        limits.check_body(closing.body, "summary_body")
        if closing.compressor:
            raise limits.refuse("compressor", "summary_body is given too; send one of them")
    if not outside:
        check_waited_for(required, closing.proceed, "proceed", "true")


def _beginning(title: str, criteria: Sequence[str], part_of: NodeId) -> Step:
    wait = Wait(WaitKind.SUBGOAL, title)
    wanted = f"\nIt succeeds when: {'; '.join(criteria)}" if criteria else ""
    step = limits.complete_step(Step(f"Subgoal: {title}{wanted}", role="assistant"), "title")
    stated = {OPENS: wait_text(wait), **{CRITERION + name: "" for name in criteria}}
    return replace(step, wait=wait, attributes={**stated, PARENT: str(part_of)} if part_of else stated)


def _ending(begun: Node, told: Mapping[str, str]) -> Step:
    wait = _step(begun).wait
    assert wait is not None, "subgoals wait"
    findings = [f"{key.removeprefix(CRITERION)}: {value or 'unknown'}" for key, value in told.items()]
    said = "\n".join((f"End of subgoal: {wait.what}", *findings))
    step = limits.complete_step(Step(said, role="assistant"), "results")
    failed = "fail" in told.values()
    return replace(
        step,
        attributes={CLOSES: wait_text(wait), **told},
        resolves=begun.node_id,
        resolution=Resolution.REFUSED if failed else Resolution.DONE,
    )


def _outcome(ended: Step) -> Verdict:
    told = [value for key, value in ended.attributes.items() if key.startswith(CRITERION)]
    if "fail" in told:
        return Verdict.FAIL
    return Verdict.PASS if told and all(value == "pass" for value in told) else Verdict.UNKNOWN


def _begins(node: Node) -> bool:
    wait = _step(node).wait
    return wait is not None and wait.kind is WaitKind.SUBGOAL


def _step(node: Node) -> Step:
    assert isinstance(node.body, Step), "paths hold steps"
    return node.body


def _still_open(inner: NodeId) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"subgoal {inner} was begun later and is still open on this path; end it first, or begin another one within it",
        reason=Reason.SUBGOAL_OPEN,
        metadata={"subgoal": str(inner)},
    )
