"""Validators: whether a summary may be trusted, told by machine.

`fidelity` asks whether it tells what happened, `outcome` whether the subgoal succeeded. A step states a checkable
criterion in its attributes (`criterion.<name>` = `pass` or `fail`, the newest of each name counts); without one the
outcome is UNKNOWN. `external` stands for a validator outside, whose verdict comes by Maintain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.domain.ids import NodeId
from katsura.domain.trees import (
    Check,
    Judgement,
    Node,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    Verdict,
    cover_digest,
)
from katsura.domain.work import EXTERNAL
from katsura.memory.core.compress import body_tokens, open_obligations, summary_token_limit
from katsura.memory.core.quotes import quotes_of, unsupported

FIDELITY: Final = "fidelity"
OUTCOME: Final = "outcome"
DEFAULT_VALIDATORS: Final = (FIDELITY, OUTCOME)
CRITERION: Final = "criterion."
CLOSED: Final = "closed: "
"""A decision that begins so closes the obligation that follows."""
_NOTE_FINDINGS: Final = 5
_SLACK_TOKENS: Final = 32
_SPOKEN: Final = (Verdict.PASS, Verdict.FAIL)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a validator looks at: a summary, what it covers in order (steps, or the summaries of a roll-up), and the
    summary that says what was owed before (of a roll-up: the last one it covers)."""

    summary: Summary
    cover: Sequence[Node]
    previous: SummaryBody | None


def fidelity(evidence: Evidence) -> Check:
    """Does the summary tell what happened: right cover, true quotes, obligations carried, short enough."""
    summary, body = evidence.summary, evidence.summary.body
    findings: list[str] = []
    if cover_digest(node.content_hash for node in evidence.cover) != summary.cover_digest:
        findings.append("the cover is not the one that was summarised")
    ids = {int(node.node_id) for node in evidence.cover}
    sources = [quotes_of(text) for node in evidence.cover for text in _texts(node)]
    if summary.level:
        ids.update(reference for source in sources for reference in source.references)
    if evidence.previous is not None:
        sources += [quotes_of(text) for text in evidence.previous.open_obligations]
    for text in (body.text, *body.facts, *body.decisions, *body.open_obligations, *body.artifacts):
        findings += unsupported(quotes_of(text), sources, ids)
    closed = {text.removeprefix(CLOSED) for text in body.decisions if text.startswith(CLOSED)}
    owed = open_obligations((n.body for n in evidence.cover if isinstance(n.body, Step)), evidence.previous)
    missing = [text for text in owed if text not in body.open_obligations and text not in closed]
    findings += [f"open obligation {text!r} is neither carried nor closed" for text in missing]
    limit = max(summary_token_limit(summary.covered_tokens), summary.covered_tokens) + _SLACK_TOKENS
    if body_tokens(body, with_obligations=False) > limit:
        findings.append(f"it is longer than {limit} tokens, which is more than it covers")
    if not body.text.strip():
        findings.append("it says nothing")
    return Check(FIDELITY, Verdict.FAIL if findings else Verdict.PASS, tuple(dict.fromkeys(findings)))


def outcome(evidence: Evidence) -> Check:
    """Did the subgoal succeed, by the criteria that steps state."""
    criteria: dict[str, str] = {}
    for node in evidence.cover:
        if isinstance(node.body, Step):
            criteria.update({k: v for k, v in node.body.attributes.items() if k.startswith(CRITERION)})
    failed = [name.removeprefix(CRITERION) for name, value in criteria.items() if value == "fail"]
    if failed:
        return Check(OUTCOME, Verdict.FAIL, tuple(f"criterion {name!r} failed" for name in failed))
    told = [name for name, value in criteria.items() if value == "pass"]
    return Check(OUTCOME, Verdict.PASS if told and len(told) == len(criteria) else Verdict.UNKNOWN)


VALIDATORS: Final[Mapping[str, Callable[[Evidence], Check]]] = {FIDELITY: fidelity, OUTCOME: outcome}


def judge(
    checks: Iterable[Check], required: Sequence[str], boundary: NodeId | None = None, note: str = ""
) -> Judgement:
    """What the checks say together.

    FAILED if fidelity or a validator outside failed, PENDING while a required one has not spoken, else VALID. A failed
    outcome is told, not distrusted: the summary is right about something that went wrong. Either failure suggests to
    go back to `boundary`, the last one before the segment, where there is one.
    """
    by_name = {check.validator: check for check in checks}
    told = by_name.get(OUTCOME, Check(OUTCOME, Verdict.UNKNOWN)).verdict
    trusted = [check for name, check in by_name.items() if name != OUTCOME]
    failed = any(check.verdict is Verdict.FAIL for check in trusted)
    spoken = {name for name in by_name if name in VALIDATORS}
    if any(name not in VALIDATORS and check.verdict in _SPOKEN for name, check in by_name.items()):
        spoken.add(EXTERNAL)
    waiting = [name for name in required if name not in spoken]
    status = SummaryStatus.FAILED if failed else SummaryStatus.PENDING if waiting else SummaryStatus.VALID
    passed = any(check.verdict is Verdict.PASS for check in trusted)
    findings = [text for check in by_name.values() for text in check.findings]
    told_note = "; ".join(findings[:_NOTE_FINDINGS])
    return Judgement(
        status=status,
        fidelity=Verdict.FAIL if failed else Verdict.PASS if passed else Verdict.UNKNOWN,
        outcome=told,
        note=note or told_note,
        suggested_restore=boundary if failed or told is Verdict.FAIL else None,
        required=tuple(required),
        checks=tuple(by_name.values()),
    )


def _texts(node: Node) -> Iterable[str]:
    step = node.body
    if isinstance(step, Summary):
        said = step.body
        yield from (said.text, *said.facts, *said.decisions, *said.open_obligations, *said.artifacts)
    if isinstance(step, Step):
        yield step.content
        yield from step.attributes.values()
        yield step.undo_ref
        if step.tool_call is not None:
            yield from (step.tool_call.call_id, step.tool_call.name, step.tool_call.arguments_json)
