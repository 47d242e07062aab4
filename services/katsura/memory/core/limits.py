"""What a request may ask for: sizes, names, and the defaults of a policy. Every refusal names its field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, Reason
from katsura.domain.ids import checked_name
from katsura.domain.retention import Retention
from katsura.domain.trees import (
    NO_COST,
    Durability,
    Effect,
    Provenance,
    Reference,
    ReferenceKind,
    Relation,
    Step,
    StepKind,
    SummaryBody,
    TreePolicy,
    WaitKind,
)
from katsura.domain.units import KIB, MIB, human_bytes
from katsura.domain.work import EXTERNAL
from katsura.memory.core.compress import COMPRESSORS, DEFAULT_COMPRESSOR, OPENS
from katsura.memory.core.rollup import DEFAULT_FANOUT
from katsura.memory.core.tokens import wait_text
from katsura.memory.core.validate import DEFAULT_VALIDATORS, VALIDATORS

STEPS_MAX: Final = 256
_UTF8_BYTES_MAX: Final = 4
"""Of one character."""
CONTENT_BYTES_MAX: Final = MIB
BLOB_BYTES_MAX: Final = MIB
GROW_BYTES_MAX: Final = 3 * MIB
"""All steps of one Grow together."""
ANSWER_BYTES_MAX: Final = 3 * MIB
"""Content of one page or answer: gRPC carries 4 MiB."""
GOAL_BYTES_MAX: Final = 64 * KIB
PINS_MAX: Final = 64
ATTRIBUTES_MAX: Final = 64
TEXT_BYTES_MAX: Final = 4 * KIB
"""Of labels, attributes, pins, reasons and ids within a step."""
RELATED_MAX: Final = 64
TREES_LOOKED_AT: Final = 2048
"""Trees that one listing by label looks at."""
TREES_WATCHED_MAX: Final = 1000
"""Trees that one Watch follows at a time."""
EXPAND_MAX: Final = 64
CRITERIA_MAX: Final = 16
"""Criteria of one subgoal."""
REFERENCES_MAX: Final = 64
INVALIDATE_MAX: Final = 256
KEEP_MAX: Final = 1 << 31
"""Of branches and revisions that stay."""
ITEMS_MAX: Final = 256
"""Of each list in a summary."""
NODES_MAX: Final = 1000
PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 500
COVER_STEPS_MAX: Final = 4096
HINT_EFFECTS_MAX: Final = 16
"""Effects that one hint tells of: irreversible ones first, of equals the newest. Revise answers all."""
HINTS_MAX: Final = 16
FANOUT_MAX: Final = 64
COST_MAX: Final = 1 << 40
"""Of each number in the cost of a step: the sums of 8 million such steps fit the store's counters."""
TOKEN_IDS_MAX: Final = 512 * KIB
BUDGET_TOKENS_MAX: Final = 4 * MIB
TTL_S_MAX: Final = 10 * 365 * 86400
DEFAULT_RAW_TOKENS: Final = 4096
DEFAULT_HINTS: Final = 3
_PROVENANCE: Final = {
    "user": Provenance.USER,
    "assistant": Provenance.MODEL,
    "tool": Provenance.TOOL,
    "system": Provenance.SYSTEM,
}


def refuse(field: str, why: str) -> InvalidArgumentError:
    """The error for a field that is wrong."""
    return InvalidArgumentError(f"{field}: {why}", field=field)


def check_text(value: str, field: str, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """`value` if it is short enough."""
    if len(value) * _UTF8_BYTES_MAX > bytes_max and (size := len(value.encode())) > bytes_max:
        why = f"it is {human_bytes(size)}; at most {human_bytes(bytes_max)} are taken"
        raise InvalidArgumentError(f"{field}: {why}", field=field, reason=Reason.BODY_TOO_LARGE)
    return value


def check_range(value: int, field: str, least: int, most: int) -> int:
    """`value` if it lies between `least` and `most`."""
    if not least <= value <= most:
        raise refuse(field, f"{value} is not between {least} and {most}")
    return value


def page_size(asked: int) -> int:
    """Size of a page: the default for 0, at most PAGE_MAX."""
    return min(check_range(asked, "page_size", 0, 1 << 31) or PAGE_DEFAULT, PAGE_MAX)


def check_map(items: Mapping[str, str], field: str) -> None:
    """Refuse labels or attributes that are too many or too long."""
    if len(items) > ATTRIBUTES_MAX:
        raise refuse(field, f"{len(items)} entries; at most {ATTRIBUTES_MAX} are taken")
    for key, value in items.items():
        check_text(key, f"{field}[{key[:32]!r}]")
        check_text(value, f"{field}[{key[:32]!r}]")


def check_retention(retention: Retention | None, field: str) -> None:
    """Refuse a retention that keeps less than nothing."""
    if retention is not None:
        check_range(retention.abandoned, f"{field}.keep_abandoned", 0, KEEP_MAX)
        check_range(retention.revisions, f"{field}.keep_revisions", 1, KEEP_MAX)
        check_range(retention.abandoned_s, f"{field}.abandoned_ttl_s", 0, TTL_S_MAX)


def complete_policy(policy: TreePolicy, offered: Durability) -> TreePolicy:
    """`policy` with defaults for what was left out.

    Raises:
        InvalidArgumentError: a limit or a name is wrong.
        FailedPreconditionError: DURABILITY_UNAVAILABLE, the tree asks for more than the store gives.
    """
    check_range(policy.raw_token_limit, "policy.raw_token_limit", 0, BUDGET_TOKENS_MAX)
    check_range(policy.hint_limit, "policy.hint_limit", 0, HINTS_MAX)
    check_range(policy.ttl_s, "policy.ttl_s", 0, TTL_S_MAX)
    check_range(policy.rollup_fanout, "policy.rollup_fanout", 0, FANOUT_MAX)
    check_retention(policy.retention, "policy.retention")
    if policy.compressor:
        check_compressor(policy.compressor, "policy.compressor")
    check_validators(policy.validators, "policy.validators")
    if policy.durability > offered:
        raise FailedPreconditionError(
            f"policy.durability: the store is {offered.name.lower()}, the tree asks for "
            f"{policy.durability.name.lower()}; run the store with an append-only file (appendfsync always for strict)",
            reason=Reason.DURABILITY_UNAVAILABLE,
            field="policy.durability",
        )
    return replace(
        policy,
        raw_token_limit=policy.raw_token_limit or DEFAULT_RAW_TOKENS,
        compressor=policy.compressor or DEFAULT_COMPRESSOR,
        validators=policy.validators or DEFAULT_VALIDATORS,
        hint_limit=policy.hint_limit or DEFAULT_HINTS,
        rollup_fanout=policy.rollup_fanout or DEFAULT_FANOUT,
        durability=policy.durability or offered,
    )


def check_compressor(name: str, field: str) -> None:
    """Refuse a compressor that there is not."""
    known = (*COMPRESSORS, EXTERNAL)
    if name not in known:
        raise refuse(field, f"there is no compressor {name!r}; there are {', '.join(known)}")


def check_validators(names: Sequence[str], field: str) -> None:
    """Refuse validators that there are not, and names given twice."""
    known = (*VALIDATORS, EXTERNAL)
    for i, name in enumerate(names):
        if name not in known:
            raise refuse(f"{field}[{i}]", f"there is no validator {name!r}; there are {', '.join(known)}")
        if name in names[:i]:
            raise refuse(f"{field}[{i}]", f"{name!r} is named twice")


def check_tree(goal: str, pins: Sequence[str], labels: Mapping[str, str], adding: bool = False) -> None:
    """Refuse a tree whose own texts are too long; `adding` to one, its fields have other names."""
    check_text(goal, "goal", GOAL_BYTES_MAX)
    field = "add_pins" if adding else "pins"
    if len(pins) > PINS_MAX:
        raise refuse(field, f"{len(pins)} entries; at most {PINS_MAX} are taken")
    for i, pin in enumerate(pins):
        check_text(pin, f"{field}[{i}]")
    check_map(labels, "set_labels" if adding else "labels")


def complete_step(step: Step, field: str) -> Step:
    """`step` with defaults for what was left out: kind and provenance by role, relation NEW, effect NONE."""
    _check_step(step, field)
    return _complete(step)


def complete_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """`steps`, each complete, if they fit one Grow."""
    if not steps:
        raise refuse("steps", "there is none; send at least one")
    if len(steps) > STEPS_MAX:
        raise refuse("steps", f"{len(steps)} steps; at most {STEPS_MAX} are taken in one Grow")
    seen: set[str] = set()
    total = 0
    for i, step in enumerate(steps):
        total += _check_step(step, f"steps[{i}]")
        if step.client_step_id and step.client_step_id in seen:
            raise refuse(f"steps[{i}].client_step_id", f"{step.client_step_id!r} is in this request twice")
        seen.add(step.client_step_id)
    if total > GROW_BYTES_MAX:
        why = f"together they are {human_bytes(total)}; one Grow takes {human_bytes(GROW_BYTES_MAX)}"
        raise InvalidArgumentError(f"steps: {why}", field="steps", reason=Reason.BODY_TOO_LARGE)
    return tuple(_complete(step) for step in steps)


def check_body(body: SummaryBody, field: str) -> None:
    """Refuse a summary that says nothing or too much."""
    if not body.text.strip():
        raise refuse(f"{field}.text", "it is empty; say what the segment did, or leave summary_body out")
    check_text(body.text, f"{field}.text", CONTENT_BYTES_MAX)
    for name in ("facts", "decisions", "open_obligations", "artifacts"):
        items = getattr(body, name)
        if len(items) > ITEMS_MAX:
            raise refuse(f"{field}.{name}", f"{len(items)} entries; at most {ITEMS_MAX} are taken")
        for i, item in enumerate(items):
            check_text(item, f"{field}.{name}[{i}]")


def check_references(references: Sequence[Reference], field: str) -> None:
    """Refuse references that lead nowhere, or too many."""
    if len(references) > REFERENCES_MAX:
        raise refuse(field, f"{len(references)} entries; at most {REFERENCES_MAX} are taken")
    for i, reference in enumerate(references):
        if reference.node_id < 1:
            raise refuse(f"{field}[{i}].node_id", "node ids are positive")
        if reference in references[:i]:
            raise refuse(f"{field}[{i}]", f"node {reference.node_id} is in this list twice")
        if reference.tree_id:
            checked_name(reference.tree_id, f"{field}[{i}].tree_id")


def check_ids(node_ids: Sequence[int], field: str, most: int) -> None:
    """Refuse node ids that are none, too many, or given twice."""
    if not 0 < len(node_ids) <= most or len(set(node_ids)) < len(node_ids):
        raise refuse(field, f"{len(node_ids)} ids; from 1 to {most} different ones are taken")
    if min(node_ids) < 1:
        raise refuse(field, "node ids are positive")


def _check_step(step: Step, at: str) -> int:
    if step.role not in _PROVENANCE:
        raise refuse(f"{at}.role", f"{step.role!r} is not one of {', '.join(_PROVENANCE)}")
    check_text(step.content, f"{at}.content", CONTENT_BYTES_MAX)
    for name in ("client_step_id", "undo_ref", "agent_id"):
        if text := getattr(step, name):
            check_text(text, f"{at}.{name}")
    if step.client_step_id and min(step.client_step_id) < " ":
        raise refuse(f"{at}.client_step_id", "it holds a control character")
    if step.attributes:
        check_map(step.attributes, f"{at}.attributes")
    if len(step.related_node_ids) > RELATED_MAX:
        raise refuse(f"{at}.related_node_ids", f"{len(step.related_node_ids)} ids; at most {RELATED_MAX} are taken")
    if step.related_node_ids and min(step.related_node_ids) < 1:
        raise refuse(f"{at}.related_node_ids", "node ids are positive")
    check_references(step.references, f"{at}.references")
    if step.cost is not NO_COST:
        for name, value in asdict(step.cost).items():
            check_range(value, f"{at}.cost.{name}", 0, COST_MAX)
    if step.wait is not None and not check_text(step.wait.what, f"{at}.wait.what", KIB).strip():
        raise refuse(f"{at}.wait.what", "it is empty; say what the step waits for")
    if step.wait is not None and step.wait.kind is WaitKind.SUBGOAL:
        raise refuse(f"{at}.wait.kind", "BeginSubgoal makes the steps that begin a subgoal")
    if step.effect is Effect.REVERSIBLE and not step.undo_ref:
        raise refuse(f"{at}.undo_ref", "a reversible effect needs to say how to undo it")
    blob = len(step.opaque) + sum(len(item.data) for item in step.attachments)
    if blob > BLOB_BYTES_MAX:
        why = f"opaque bytes and attachments are {human_bytes(blob)}; at most {human_bytes(BLOB_BYTES_MAX)} are taken"
        raise InvalidArgumentError(f"{at}.attachments: {why}", field=f"{at}.attachments", reason=Reason.BODY_TOO_LARGE)
    call = 0
    if step.tool_call is not None:
        check_text(step.tool_call.call_id, f"{at}.tool_call.call_id")
        if not step.tool_call.name:
            raise refuse(f"{at}.tool_call.name", "a tool call names its tool")
        check_text(step.tool_call.name, f"{at}.tool_call.name")
        check_text(step.tool_call.arguments_json, f"{at}.tool_call.arguments_json", CONTENT_BYTES_MAX)
        call = len(step.tool_call.arguments_json.encode())
    elif not step.content and not blob and step.kind is not StepKind.MESSAGE:  # a model may have nothing to say
        raise refuse(f"{at}.content", "it is empty, and there is neither a tool call nor an attachment")
    return len(step.content.encode()) + blob + call


def _complete(step: Step) -> Step:
    wait = step.wait and replace(step.wait, kind=step.wait.kind or WaitKind.TOOL)
    owed = {OPENS: wait_text(wait)} if wait else {}
    by_role = StepKind.OBSERVATION if step.role == "tool" else StepKind.MESSAGE
    return replace(
        step,
        kind=step.kind or (StepKind.TOOL_CALL if step.tool_call else by_role),
        relation=step.relation or Relation.NEW,
        effect=step.effect or Effect.NONE,
        wait=wait,
        attributes={**owed, **step.attributes} if owed else step.attributes,
        provenance=step.provenance or _PROVENANCE[step.role],
        references=tuple(replace(r, kind=r.kind or ReferenceKind.DEPENDS_ON, declared=False) for r in step.references)
        if step.references
        else (),
    )


def check_tree_id(value: str) -> str:
    """A tree id that a client chose."""
    return checked_name(value, "tree_id")
