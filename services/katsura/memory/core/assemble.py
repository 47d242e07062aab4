"""Assembly: a branch as the messages of a prompt, under a token budget, with a prefix that stays the same.

    goal and pins | summaries, raw steps, slots and hints in the order of the path
    never dropped | VALID summaries stand for their covers; a slot stands where its value was set; hints are untrusted
                  | and stand where the branch turned; what is stale is told where it became so

What is left out is a function of the branch and the budget alone. Old raw steps are cut where the path's token count
passes a multiple of half the room: the shown part grows to the high-water mark (the room), then the cut moves once,
to the low-water mark, and stays there while the branch grows. Summaries are cut likewise, at multiples of half their
share. So a prompt cache is lost once per half room, never at each step, and forks of one step share their prefix. A
hint never moves either, and never comes between a question and its answer (docs/adr/0007).

The order of sacrifice: the oldest raw steps, hints, what is stale, the oldest summaries, all of the newest summary but
its open obligations. Goal, pins, slots, open obligations and the newest step are never dropped: where they do not fit,
the answer is OUT_OF_RANGE / BUDGET_TOO_SMALL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import blake2b
from typing import Final, TypeVar

from katsura.domain.errors import OutOfRangeError, Reason
from katsura.domain.ids import NodeId
from katsura.domain.trees import (
    ROOT,
    Hint,
    Judgement,
    Shown,
    Slot,
    Snapshot,
    StaleReason,
    StaleStep,
    Step,
    Summary,
    SummaryStatus,
    ToolCall,
    WaitKind,
)
from katsura.memory.core.slots import slot_text
from katsura.memory.core.tokens import estimate, estimate_step, hint_text, shown_text, wait_text

P = TypeVar("P")
LOW_WATER_SHARE: Final = 2
"""The low-water mark is the room less a 1/2 of it."""
HINT_SHARE: Final = 8
"""Hints take at most 1/8 of the room."""
SUMMARY_SHARE: Final = 2
"""Summaries take at most 1/2 of what pins leave."""
STALE_SHARE: Final = 8
"""What no longer holds is told in at most 1/8 of the room."""
COVERED, OVER_BUDGET, NOT_VALID, HINT_LIMIT = "covered-by-summary", "over-budget", "summary-not-valid", "hint-limit"
STALE_LIMIT: Final = "stale-limit"
_BEFELL: Final = {
    StaleReason.REPLACED: "which {} replaced",
    StaleReason.REDACTED: "whose content was destroyed",
    StaleReason.ABANDONED: "which a Revise abandoned",
    StaleReason.INVALIDATED: "which was said to hold no longer",
    StaleReason.FAILED: "a summary that failed its check",
    StaleReason.GONE: "which is not there any more",
}


class SegmentKind(IntEnum):
    """Part of a context (numbers of the API)."""

    PIN = 1
    SUMMARY = 2
    STEP = 3
    HINT = 4
    SLOT = 5
    STALE = 6
    WAITING = 7


_KEPT: Final = 8192
_KEPT_CHARS: Final = 2048
_AFTER: Final = {SegmentKind.SLOT: 1, SegmentKind.HINT: 2, SegmentKind.STALE: 3, SegmentKind.WAITING: 4}


@dataclass(frozen=True, slots=True)
class Segment:
    """One message of a context. `token_count` is `estimated` where no ids are attached for the tokenizer; `tree_id` is
    the node's, where the tree was forked off it."""

    kind: SegmentKind
    role: str
    content: str
    node_id: NodeId
    token_count: int
    estimated: bool
    token_ids: tuple[int, ...] = ()
    tool_call: ToolCall | None = None
    shortened: bool = False
    tree_id: str = ""

    def __hash__(self) -> int:
        return hash((self.node_id, self.content))

    @property
    def text_hash(self) -> bytes:
        """Hash over role, content and tool call, 16 bytes."""
        call = self.tool_call
        parts = (self.role, self.content, *((call.call_id, call.name, call.arguments_json) if call else ()))
        return blake2b("\0".join(parts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Dropped:
    """Something left out. A run of steps left out for one reason is one entry that names the last of them."""

    kind: SegmentKind
    node_id: NodeId
    reason: str
    token_count: int


@dataclass(frozen=True, slots=True)
class Assembly:
    """A prompt. `cut` is the depth below which it shows summaries only."""

    segments: tuple[Segment, ...]
    dropped: tuple[Dropped, ...]
    untokenized: tuple[NodeId, ...]
    total_tokens: int
    cut: int


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which summaries, hints and notices of what is stale are shown, oldest first."""

    summaries: tuple[tuple[Shown, Segment], ...]
    hints: tuple[tuple[Shown, Segment], ...]
    stale: tuple[tuple[StaleStep, Segment], ...]

    @property
    def tokens(self) -> int:
        return _cost(segment for _, segment in (*self.summaries, *self.hints, *self.stale))


def assemble(
    snapshot: Snapshot, room: int, *, tokenizer: bool, segment_of: Callable[[Shown], Segment] | None = None
) -> Assembly:
    """The prompt of a branch in at most `room` rendered tokens.

    Args:
        snapshot: taken with `token_limit` of at least `room`.
        tokenizer: whether a tokenizer was named, so that nodes without ids are worth reporting.

    Raises:
        OutOfRangeError: BUDGET_TOO_SMALL.
    """
    pins = _pin_segment(snapshot)
    slots = [(shown, _slot_segment(shown)) for shown in snapshot.slots]
    waiting = [(shown, _waiting_segment(shown)) for shown in snapshot.waiting]
    kept = _cost((*pins, *(segment for _, segment in (*slots, *waiting))))
    steps = list(map(segment_of or step_segment, snapshot.steps))
    valid = [(shown, summary_segment(shown)) for shown in snapshot.summaries if _is_valid(shown.node.judgement)]
    hints = [(shown, _hint_segment(shown)) for shown in snapshot.hints]
    most_hints = snapshot.tree.policy.hint_limit
    stale = _stale_segments(snapshot)
    chosen = _choose(valid, hints[-most_hints:], stale, room - kept, _cost(steps[-1:]), room)
    needed = kept + chosen.tokens + _cost(steps[-1:])
    if needed > room:
        raise OutOfRangeError(
            f"goal, pins, slots, open obligations and the newest step take {needed} tokens; the budget leaves {room}. "
            "Raise budget_tokens, lower reserve_tokens, or shorten them",
            reason=Reason.BUDGET_TOO_SMALL,
            field="budget_tokens",
            metadata={"needed_tokens": str(needed), "room_tokens": str(room)},
        )
    first = _first_shown(snapshot, steps, room - kept - chosen.tokens, room)
    raw = list(zip(snapshot.steps, steps, strict=True))[first:]
    unseen = _unseen(waiting, [shown for shown, _ in raw], chosen)
    placed = [(shown.node.depth, part) for shown, part in (*chosen.summaries, *raw, *slots, *chosen.hints)]
    segments = (*pins, *_in_path_order((*placed, *_noticed(chosen), *unseen)))
    cut = snapshot.steps[first].node.depth - 1 if first < len(steps) else snapshot.branch.depth
    return Assembly(
        segments=segments,
        dropped=(
            *_dropped(snapshot, valid, hints, chosen, first),
            *_dropped_stale(stale[: len(stale) - len(chosen.stale)]),
        ),
        untokenized=tuple(s.node_id for s in segments if s.estimated and not s.shortened and not s.tree_id)
        if tokenizer
        else (),
        total_tokens=_cost(segments),
        cut=cut,
    )


def summary_segment(shown: Shown) -> Segment:
    """A summary as a message: whole, with the node ids by which an agent may ask for its cover or go back to it."""
    summary = _summary(shown)
    body = summary.body
    lists = (
        ("Facts", body.facts),
        ("Decisions", body.decisions),
        ("Open obligations", body.open_obligations),
        ("Artifacts", body.artifacts),
    )
    lines = [f"[{_title(shown)}]", body.text]
    lines += [line for title, items in lists for line in _listed(title, items)]
    return _segment(SegmentKind.SUMMARY, "user", "\n".join(lines), shown)


def _choose(
    valid: Sequence[tuple[Shown, Segment]],
    hints: Sequence[tuple[Shown, Segment]],
    stale: Sequence[tuple[StaleStep, Segment]],
    left: int,
    newest: int,
    room: int,
) -> _Chosen:
    """Summaries, what is stale, and hints, the newest of each first, within their shares of what pins leave.

    The shares do not depend on the newest step, or each step would change the prefix; only one so large that it does
    not fit beside them takes from them.
    """
    shown: list[tuple[Shown, Segment]] = []
    left, share = left - newest, min(left // SUMMARY_SHARE, left - newest)
    if valid and valid[-1][1].token_count > left:
        summary, _ = valid[-1]
        short = _obligations_segment(summary)
        shown += [(summary, short)] if short else []
    else:
        shown += valid[_first_summary(valid, share, room) :]
    left -= _cost(segment for _, segment in shown)
    told = _newest(stale, min(left, room // STALE_SHARE))
    kept = _newest(hints, min(left - _cost(segment for _, segment in told), room // HINT_SHARE))
    return _Chosen(tuple(shown), kept, told)


def _first_summary(valid: Sequence[tuple[Shown, Segment]], share: int, room: int) -> int:
    """Index of the oldest summary that is shown, by marks along the summaries as steps are cut by theirs."""
    fit = max(0, len(valid) - 1)
    left = share - _cost(segment for _, segment in valid[fit:])
    while fit and valid[fit - 1][1].token_count <= left:
        fit -= 1
        left -= valid[fit][1].token_count
    starts = [shown.node.path_tokens - shown.node.tokens for shown, _ in valid]
    return _past_mark(starts, fit, room // (SUMMARY_SHARE * LOW_WATER_SHARE))


def _past_mark(starts: Sequence[int], fit: int, stride: int) -> int:
    """The first index from `fit` on that begins at or past a multiple of `stride`, or the last."""
    if fit >= len(starts):
        return fit
    mark = -(-starts[fit] // max(1, stride)) * max(1, stride)
    return next((i for i in range(fit, len(starts)) if starts[i] >= mark), len(starts) - 1)


def _newest(parts: Sequence[tuple[P, Segment]], left: int) -> tuple[tuple[P, Segment], ...]:
    """The newest parts that fit, oldest first."""
    first = len(parts)
    while first and parts[first - 1][1].token_count <= left:
        first -= 1
        left -= parts[first][1].token_count
    return tuple(parts[first:])


def _first_shown(snapshot: Snapshot, steps: Sequence[Segment], left: int, room: int) -> int:
    """Index of the oldest raw step that is shown: the first one past the lowest mark from which the rest fits."""
    fit = len(steps)
    while fit and steps[fit - 1].token_count <= left:
        fit -= 1
        left -= steps[fit].token_count
    if fit == len(steps) or (fit == 0 and snapshot.steps_rest.node_id == ROOT):
        return fit
    starts = [shown.node.path_tokens - shown.node.tokens for shown in snapshot.steps]
    return _past_mark(starts, fit, room // LOW_WATER_SHARE)


def _in_path_order(parts: Iterable[tuple[int, Segment]]) -> tuple[Segment, ...]:
    """By depth; what has the depth of the step at which it was made follows that step."""
    ordered = sorted(parts, key=lambda part: (part[0], _AFTER.get(part[1].kind, 0)))
    return tuple(segment for _, segment in ordered)


def _dropped(
    snapshot: Snapshot,
    valid: Sequence[tuple[Shown, Segment]],
    hints: Sequence[tuple[Shown, Segment]],
    chosen: _Chosen,
    first: int,
) -> Iterable[Dropped]:
    rest = snapshot.summaries_rest
    if rest.node_id:
        yield Dropped(SegmentKind.SUMMARY, rest.node_id, OVER_BUDGET, rest.tokens)
    shown = {summary.node.node_id: segment for summary, segment in chosen.summaries}
    for summary, segment in valid:
        node_id = summary.node.node_id
        if node_id in shown:
            covered = _summary(summary)
            what = SegmentKind.SUMMARY if covered.level else SegmentKind.STEP
            yield Dropped(what, covered.last_covered, COVERED, covered.covered_tokens)
        saved = segment.token_count - (shown[node_id].token_count if node_id in shown else 0)
        if saved:
            yield Dropped(SegmentKind.SUMMARY, node_id, OVER_BUDGET, saved)
    for summary in snapshot.summaries:
        if not _is_valid(summary.node.judgement):
            yield Dropped(SegmentKind.SUMMARY, summary.node.node_id, NOT_VALID, summary.cost)
    last = snapshot.steps[first - 1].node.node_id if first else snapshot.steps_rest.node_id
    if last:
        covered_tokens = sum(_summary(summary).covered_tokens for summary, _ in valid)
        older = max(0, snapshot.steps_rest.tokens - covered_tokens)
        tokens = sum(step.cost for step in snapshot.steps[:first]) + older
        yield Dropped(SegmentKind.STEP, last, OVER_BUDGET, tokens)
    if snapshot.hints_rest.node_id:
        yield Dropped(SegmentKind.HINT, snapshot.hints_rest.node_id, HINT_LIMIT, snapshot.hints_rest.tokens)
    limit = snapshot.tree.policy.hint_limit
    for age, (_, hint) in enumerate(reversed(hints[: len(hints) - len(chosen.hints)]), start=len(chosen.hints)):
        yield Dropped(SegmentKind.HINT, hint.node_id, OVER_BUDGET if age < limit else HINT_LIMIT, hint.token_count)


def _pin_segment(snapshot: Snapshot) -> tuple[Segment, ...]:
    """Goal and pins as one message, under node 0; none where the tree has neither."""
    tree = snapshot.tree
    lines = [f"Goal: {tree.goal}"] if tree.goal else []
    lines += _listed("Constraints", tree.pins)
    if not lines:
        return ()
    text, count = "\n".join(lines), snapshot.root_count
    tokens = estimate(text) if count is None else count
    return (Segment(SegmentKind.PIN, "system", text, ROOT, tokens, count is None, snapshot.root_ids),)


class KeptSegments:
    """`step_segment`, which every assembly of a branch asks again for nearly the same steps: short ones are kept, by
    the identity of what is shown, which never changes. Dropping this object drops every text that it keeps."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Shown, Segment]] = {}

    def of(self, shown: Shown) -> Segment:
        """A step as a message."""
        kept = self._kept.get(id(shown))
        if kept is not None and kept[0] is shown:
            return kept[1]
        segment = step_segment(shown)
        if len(segment.content) <= _KEPT_CHARS and segment.tool_call is None and not segment.token_ids:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            self._kept[id(shown)] = shown, segment
        return segment


def step_segment(shown: Shown) -> Segment:
    """A step as a message."""
    step = shown.node.body
    assert isinstance(step, Step), "raw steps are steps"
    tokens = estimate_step(step) if shown.count is None else shown.count
    return Segment(
        SegmentKind.STEP, step.role, shown_text(step), shown.node.node_id, tokens, shown.count is None, shown.token_ids,
        step.tool_call, tree_id=shown.tree_id,
    )  # fmt: skip


def _hint_segment(shown: Shown) -> Segment:
    hint = shown.node.body
    assert isinstance(hint, Hint), "hints are hints"
    return _segment(SegmentKind.HINT, "user", hint_text(hint), shown)


def _waiting_segment(shown: Shown) -> Segment:
    step = shown.node.body
    assert isinstance(step, Step), "steps wait"
    assert step.wait is not None
    where = f" of tree {shown.tree_id}" if shown.tree_id else ""
    does = "began" if step.wait.kind is WaitKind.SUBGOAL else "waits for"
    text = f"[open: step {shown.node.node_id}{where} {does} {wait_text(step.wait)}]"
    return Segment(SegmentKind.WAITING, "user", text, ROOT, estimate(text), estimated=True, shortened=True)


def _unseen(
    waiting: Iterable[tuple[Shown, Segment]], raw: Iterable[Shown], chosen: _Chosen
) -> Iterable[tuple[int, Segment]]:
    """Notices of what waits, where its step is not shown itself, by the depth at which they stand."""
    seen = {(shown.tree_id, shown.node.node_id) for shown in raw}
    ends = [shown.node.depth for shown, _ in chosen.summaries]
    for shown, part in waiting:
        depth = shown.node.depth
        if (shown.tree_id, shown.node.node_id) not in seen:
            yield next((end for end in ends if end >= depth), depth), part


def _stale_segments(snapshot: Snapshot) -> list[tuple[StaleStep, Segment]]:
    """What no longer holds, oldest first, where it came to hold no longer. A redacted step says so itself."""
    redacted = StaleReason.REDACTED
    told = [s for s in snapshot.stale if (s.mark.reason, s.mark.cause, s.mark.tree_id) != (redacted, s.node_id, "")]
    return [(stale, _stale_segment(stale)) for stale in sorted(told, key=lambda s: (s.depth, s.node_id, s.mark))]


def _noticed(chosen: _Chosen) -> Iterable[tuple[int, Segment]]:
    """Notices by the depth at which they stand: after the summary, where one covers their step."""
    ends = [shown.node.depth for shown, _ in chosen.summaries]
    for stale, part in chosen.stale:
        yield next((end for end in ends if end >= stale.depth), stale.depth), part


def _stale_segment(stale: StaleStep) -> Segment:
    """It shows no node: the ids attached under the step are the step's."""
    mark = stale.mark
    there = f" of tree {mark.tree_id}" if mark.tree_id else ""
    rests = "" if mark.cause == stale.node_id and not there else f" rests on {mark.cause}{there}"
    where = f" of tree {stale.tree_id}" if stale.tree_id else ""
    befell = _BEFELL[mark.reason].format(f"step {mark.seen_from}" if mark.seen_from else "another step")
    text = f"[stale: step {stale.node_id}{where}{rests}, {befell}]"
    return Segment(SegmentKind.STALE, "user", text, ROOT, estimate(text), estimated=True, shortened=True)


def _dropped_stale(parts: Sequence[tuple[StaleStep, Segment]]) -> Iterable[Dropped]:
    return (Dropped(SegmentKind.STALE, stale.node_id, STALE_LIMIT, part.token_count) for stale, part in parts)


def _slot_segment(shown: Shown) -> Segment:
    assert isinstance(shown.node.body, Slot), "slots are slots"
    return _segment(SegmentKind.SLOT, "user", slot_text(shown.node.body), shown)


def _obligations_segment(shown: Shown) -> Segment | None:
    """The least that a summary is reduced to; None where nothing is owed. Its text is not that of the attached ids."""
    summary = _summary(shown)
    if not summary.body.open_obligations:
        return None
    head = f"[{_title(shown)}, shortened]"
    text = "\n".join((head, *_listed("Open obligations", summary.body.open_obligations)))
    bare = Segment(SegmentKind.SUMMARY, "user", text, shown.node.node_id, estimate(text), estimated=True)
    return replace(bare, shortened=True, tree_id=shown.tree_id)


def _title(shown: Shown) -> str:
    summary = _summary(shown)
    covered = "summaries" if summary.level else "steps"
    where = f" of tree {shown.tree_id}" if shown.tree_id else ""
    return f"summary {shown.node.node_id} of {covered} {summary.first_covered} to {summary.last_covered}{where}"


def _segment(kind: SegmentKind, role: str, text: str, shown: Shown) -> Segment:
    tokens = estimate(text) if shown.count is None else shown.count
    return Segment(
        kind, role, text, shown.node.node_id, tokens, shown.count is None, shown.token_ids, tree_id=shown.tree_id
    )


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"- {item}" for item in items)] if items else []


def _summary(shown: Shown) -> Summary:
    assert isinstance(shown.node.body, Summary), "the summary chain holds summaries"
    return shown.node.body


def _is_valid(judgement: Judgement | None) -> bool:
    return judgement is not None and judgement.status is SummaryStatus.VALID


def _cost(segments: Iterable[Segment]) -> int:
    return sum(segment.token_count for segment in segments)
