"""Compress and Maintain: segments become summaries, and summaries are judged before they are trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from katsura.domain.errors import ConflictError, FailedPreconditionError, NotFoundError, OutOfRangeError, Reason
from katsura.domain.ids import NodeId, checked_name
from katsura.domain.trees import (
    LATE,
    ROOT,
    Check,
    Judgement,
    Node,
    Request,
    Summary,
    SummaryBody,
    SummaryStatus,
    TreePolicy,
    Verdict,
    cover_digest,
    request_of,
)
from katsura.domain.work import EXTERNAL, WorkItem, WorkKind
from katsura.memory.core import limits
from katsura.memory.core.compress import COMPRESSORS, body_tokens
from katsura.memory.core.rollup import DEFAULT_FANOUT, NEVER, due, rolled_body
from katsura.memory.core.validate import FIDELITY, OUTCOME, VALIDATORS, Evidence, judge
from katsura.memory.operations import ID_MAX, Operations, Write, as_answer, committing, thread_if
from katsura.state.trees import (
    Cover,
    TreeRef,
    Written,
)
from katsura.telemetry import log

_LOG = log.get(__name__)
_BY_AGENT: Final = "agent"
_BY_ROLL_UP: Final = "roll-up"
_CHAIN_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Outside:
    """Verdict of a validator outside. `to_root`: the 0 that it suggests means the root, not none."""

    validator: str
    fidelity: Verdict
    outcome: Verdict
    note: str
    suggested_restore: int
    to_root: bool = field(default=False, metadata=LATE)


class Summaries(Operations):
    """The operations that make summaries and judge them."""

    async def compress(
        self,
        write: Write,
        last_covered: int,
        body: SummaryBody | None,
        compressor: str,
        validators: Sequence[str],
        proceed: bool,
    ) -> Written | WorkItem:
        """Close the raw segment with a summary; validated before the answer unless `proceed`. Where a worker outside is
        to write it, the answer is its task."""
        write = write.checked()
        limits.check_range(last_covered, "last_covered", 0, ID_MAX)
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
            written = as_answer(Written, done)
            # The call that was answered may have died before what was due.
            await self._roll_up_due(write.tree, written.branch.name, await self._policy(write.tree, ""))
            return written
        policy = await self._policy(write.tree, write.branch)
        required, name = tuple(validators) or policy.validators, compressor or policy.compressor
        if body is None and name == EXTERNAL:
            return await self._ask_outside(write, last_covered)
        made_by = _BY_AGENT if body is not None else name
        check_waited_for(required, proceed, "on_pending", "ON_PENDING_PROCEED")

        async def attempt() -> Written:
            cover = await self._trees.cover(write.tree, write.branch, write.expected_head, last_covered)
            nodes = await self._cover_nodes(write.tree, cover)
            evidence = await thread_if(len(nodes), lambda: evidence_of_cover(cover, nodes, body, made_by))
            judgement = judge((), required, cover.base)
            if not proceed:
                judgement = await thread_if(len(nodes), lambda: checked(evidence, required, cover.base))
            return await self._trees.summarise(
                write.tree, cover, write.expected_head, evidence.summary, judgement, request
            )

        with committing("compress"):
            written = await self._until_it_holds(write, attempt)
        if proceed:
            self._validate_later(write.tree, written)
        else:
            await self._roll_up_due(write.tree, written.branch.name, policy)
        return written

    async def _ask_outside(self, write: Write, last_covered: int) -> WorkItem:
        if last_covered:
            raise limits.refuse("last_covered", "a worker outside summarises the whole raw segment; leave it out")
        await self._trees.cover(write.tree, write.branch, write.expected_head, 0)
        return await self._trees.schedule(write.tree, WorkKind.COMPRESS, write.branch, ROOT, "")

    async def roll_up(
        self, ref: TreeRef, request_id: str, branch: str, body: SummaryBody | None, summary_ids: Sequence[int]
    ) -> Written:
        """Roll up the summaries named, or those that are due."""
        limits.check_text(request_id, "request_id")
        if len(summary_ids) not in (0, *range(2, limits.FANOUT_MAX + 1)):
            raise limits.refuse("summary_ids", f"{len(summary_ids)}; none, or from 2 to {limits.FANOUT_MAX} are taken")
        for i, node_id in enumerate(summary_ids):
            limits.check_range(node_id, f"summary_ids[{i}]", 1, ID_MAX)
        if body is not None:
            limits.check_body(body, "summary_body")
        request = request_of(request_id, "roll_up", branch, body, tuple(summary_ids))
        if (done := await self._trees.replayed(ref, request)) is not None:
            return as_answer(Written, done)
        if summary_ids:
            cover = await self._trees.nodes(ref, summary_ids, limits.ANSWER_BYTES_MAX)
            wrong = [i for i, node in enumerate(cover) if not isinstance(node.body, Summary)]
            if wrong:
                raise limits.refuse(f"summary_ids[{wrong[0]}]", f"node {summary_ids[wrong[0]]} is not a summary")
        else:
            policy = await self._policy(ref, branch)
            cover = due(await self._trees.summaries(ref, branch, _CHAIN_MAX), policy.rollup_fanout or DEFAULT_FANOUT)
        if not cover:
            raise FailedPreconditionError(
                "no roll-up is due: name the summaries in summary_ids, or wait for more of them",
                reason=Reason.BAD_BOUNDARY,
                field="summary_ids",
            )
        with committing("roll_up"):
            return await self._write_roll_up(ref, branch, cover, body, request)

    async def _roll_up_due(self, ref: TreeRef, branch: str, policy: TreePolicy) -> None:
        """Roll up until nothing is due. Somebody else's change in between is left to the next Compress."""
        fanout = policy.rollup_fanout or DEFAULT_FANOUT
        if fanout == NEVER:
            return
        try:
            while cover := due(await self._trees.summaries(ref, branch, _CHAIN_MAX), fanout):
                with committing("roll_up"):
                    await self._write_roll_up(ref, branch, cover, None, request_of("", "roll_up"))
        except (ConflictError, FailedPreconditionError, NotFoundError):
            return

    async def _write_roll_up(
        self, ref: TreeRef, branch: str, cover: Sequence[Node], body: SummaryBody | None, request: Request
    ) -> Written:
        made = body if body is not None else rolled_body(cover)
        levels = [node.body.level for node in cover if isinstance(node.body, Summary)]
        summary = Summary(
            level=max(levels) + 1,
            first_covered=cover[0].node_id,
            last_covered=cover[-1].node_id,
            covered_count=len(cover),
            cover_digest=cover_digest(node.content_hash for node in cover),
            body=made,
            made_by=_BY_AGENT if body is not None else _BY_ROLL_UP,
            version=1,
            covered_tokens=sum(node.tokens for node in cover),
            body_tokens=body_tokens(made),
            parts=tuple(node.node_id for node in cover),
        )
        evidence = Evidence(summary, cover, _said(cover[-1]))
        judgement = await thread_if(len(cover), lambda: checked(evidence, (FIDELITY,), None))
        return await self._trees.roll_up(ref, branch, cover, summary, judgement, request)

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
        limits.check_range(summary_id, "summary_id", 0, ID_MAX)
        limits.check_validators(validators, "validators")
        if outside is not None:
            check_outside(outside)
        request = request_of(request_id, "maintain", branch, summary_id, validators, outside)
        if (done := await self._trees.replayed(ref, request)) is not None:
            return as_answer(Written, done)

        async def attempt() -> Written:
            node = await self._summary(ref, branch, summary_id)
            before = node.judgement
            assert before is not None, "summaries are judged"
            if outside is not None:
                judgement = with_outside(before, outside)
            else:
                evidence = await self._evidence_of(ref, node)
                required = tuple(validators) or before.required
                boundary = None if evidence.summary.level else evidence.cover[0].parent_id
                judgement = await thread_if(
                    len(evidence.cover), lambda: checked(evidence, required, boundary, before.checks)
                )
            return await self._trees.judge(ref, branch, node, judgement, request)

        with committing("maintain"):
            written = await self._until_it_holds(Write(request_id, ref, branch, None, True), attempt)
        if written.node.judgement is not None and written.node.judgement.status is SummaryStatus.VALID:
            await self._roll_up_due(ref, written.branch.name, await self._policy(ref, branch))
        return written

    async def _policy(self, ref: TreeRef, branch: str) -> TreePolicy:
        return (await self._trees.snapshot(ref, branch, 0, 0, "", False)).tree.policy

    async def _cover_nodes(self, ref: TreeRef, cover: Cover) -> tuple[Node, ...]:
        check_count(cover.count)
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
        if node.body.level:
            rolled = await self._trees.nodes(ref, node.body.parts, limits.ANSWER_BYTES_MAX)
            return Evidence(node.body, rolled, _said(rolled[-1]))
        cover = await self._steps_up_to(ref, node.birth_branch, node.body.last_covered, count)
        return Evidence(node.body, cover, await self._previous_of(ref, node))

    async def _previous_of(self, ref: TreeRef, summary: Node) -> SummaryBody | None:
        if not summary.parent_id:
            return None
        (before,) = await self._trees.nodes(ref, [summary.parent_id], limits.ANSWER_BYTES_MAX)
        return _said(before)

    def _validate_later(self, ref: TreeRef, written: Written) -> None:
        async def validate() -> None:
            try:
                await self.maintain(ref, "", written.branch.name, written.node.node_id, (), None)
            except (ConflictError, NotFoundError):
                return  # judged by somebody else, or dropped with its tree
            except Exception as error:  # noqa: BLE001 - the summary stays PENDING, which is safe; say so
                _LOG.error("a late validation failed; the summary stays pending", exc=error)

        self._spawn(validate())


def _said(node: Node) -> SummaryBody | None:
    return node.body.body if isinstance(node.body, Summary) else None


def check_count(steps: int) -> None:
    """Refuse a segment that is too long for one summary."""
    if steps > limits.COVER_STEPS_MAX:
        raise OutOfRangeError(
            f"last_covered: the segment has {steps} steps; one summary covers at most "
            f"{limits.COVER_STEPS_MAX}. Name an earlier last_covered and compress in parts",
            reason=Reason.BAD_BOUNDARY,
            field="last_covered",
        )


def check_waited_for(required: Sequence[str], proceed: bool, field: str, instead: str) -> None:
    """Refuse to wait for a validator outside; `field` should have said `instead`."""
    if EXTERNAL in required and not proceed:
        raise limits.refuse(field, f"the verdict of a validator outside cannot be waited for; send {instead}")


def evidence_of_cover(cover: Cover, nodes: Sequence[Node], body: SummaryBody | None, made_by: str) -> Evidence:
    """A summary of `cover` as it would be written, and what speaks for it. Without a `body` the compressor `made_by` is
    asked for one."""
    before = cover.previous.body if cover.previous else None
    previous = before.body if isinstance(before, Summary) else None
    made = body if body is not None else COMPRESSORS[made_by](nodes, previous)
    summary = Summary(
        level=0,
        first_covered=nodes[0].node_id,
        last_covered=cover.last,
        covered_count=cover.count,
        cover_digest=cover_digest(node.content_hash for node in nodes),
        body=made,
        made_by=made_by,
        version=cover.versions + 1,
        covered_tokens=cover.tokens,
        body_tokens=body_tokens(made),
    )
    return Evidence(summary, nodes, previous)


def checked(
    evidence: Evidence, required: Sequence[str], boundary: NodeId | None, kept: Sequence[Check] = ()
) -> Judgement:
    """Run the built-in validators among `required`; verdicts from outside are kept."""
    outside = [check for check in kept if check.validator not in VALIDATORS]
    ours = [VALIDATORS[name](evidence) for name in required if name in VALIDATORS]
    return judge((*outside, *ours), required, boundary)


def with_outside(before: Judgement, outside: Outside) -> Judgement:
    """What is known about a summary after a validator outside has spoken."""
    findings = (outside.note,) if outside.note else ()
    checks = {check.validator: check for check in before.checks}
    if outside.fidelity:
        checks[outside.validator] = Check(outside.validator, outside.fidelity, findings)
    if outside.outcome:
        checks[OUTCOME] = Check(OUTCOME, outside.outcome, findings)
    judgement = judge(checks.values(), before.required, before.suggested_restore, outside.note)
    if outside.suggested_restore or outside.to_root:
        return replace(judgement, suggested_restore=NodeId(outside.suggested_restore))
    return judgement


def check_outside(outside: Outside) -> None:
    """Refuse a verdict that says nothing, or speaks under one of our names."""
    checked_name(outside.validator, "verdict.validator")
    if outside.validator in VALIDATORS:
        raise limits.refuse("verdict.validator", f"{outside.validator!r} is one of ours; use a name of your own")
    if not outside.fidelity and not outside.outcome:
        raise limits.refuse("verdict.fidelity", "neither fidelity nor outcome is told")
    limits.check_text(outside.note, "verdict.note")
    limits.check_range(outside.suggested_restore, "verdict.suggested_restore", 0, ID_MAX)
