"""Expansion: what a summary of an assembled context stands for, shown in its place, where that fits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Shown, Step, Summary
from katsura.memory.core.assemble import (
    COVERED,
    OVER_BUDGET,
    Assembly,
    Dropped,
    Segment,
    SegmentKind,
    step_segment,
    summary_segment,
)

NOT_SHOWN: Final = "not-shown"


def shown_summary(assembly: Assembly, node_id: int) -> Segment | None:
    """The segment of a summary of the tree itself, if the context shows it."""
    shown = (s for s in assembly.segments if s.kind is SegmentKind.SUMMARY and not s.tree_id)
    return next((segment for segment in shown if segment.node_id == node_id), None)


def not_shown(assembly: Assembly, node_id: int) -> Assembly:
    """`assembly`, saying that a summary could not be expanded because it is not in it."""
    return replace(assembly, dropped=(*assembly.dropped, Dropped(SegmentKind.SUMMARY, NodeId(node_id), NOT_SHOWN, 0)))


def expanded(assembly: Assembly, segment: Segment, summary: Summary, cover: Sequence[Node], room: int) -> Assembly:
    """`assembly` with the cover of the summary that `segment` shows in its place, if all of it fits `room` tokens; else
    as it was, with the cover as left out for the budget. Steps are counted by their estimate."""
    pieces = [_piece(node) for node in cover]
    total = assembly.total_tokens - segment.token_count + sum(piece.token_count for piece in pieces)
    if total > room:
        return not_expanded(assembly, summary)
    return replace(
        assembly,
        segments=tuple(_in_place(assembly.segments, segment, pieces)),
        total_tokens=total,
        dropped=tuple(_told(assembly.dropped, summary, fits=True)),
        untokenized=tuple(n for n in assembly.untokenized if n != segment.node_id),
    )


def too_large(assembly: Assembly, segment: Segment, summary: Summary, room: int) -> bool:
    """Whether the cover cannot fit, told without reading it."""
    return assembly.total_tokens - segment.token_count + summary.covered_tokens > room


def not_expanded(assembly: Assembly, summary: Summary) -> Assembly:
    """`assembly`, saying that the cover was left out for the budget."""
    return replace(assembly, dropped=tuple(_told(assembly.dropped, summary, fits=False)))


def _piece(node: Node) -> Segment:
    return step_segment(Shown(node, None)) if isinstance(node.body, Step) else summary_segment(Shown(node, None))


def _in_place(segments: Iterable[Segment], segment: Segment, pieces: Iterable[Segment]) -> Iterable[Segment]:
    for one in segments:
        if one is segment:
            yield from pieces
        else:
            yield one


def _told(dropped: Iterable[Dropped], summary: Summary, *, fits: bool) -> Iterable[Dropped]:
    """A cover that is shown is not left out; one that does not fit is left out for that."""
    for one in dropped:
        if (one.node_id, one.reason) != (summary.last_covered, COVERED):
            yield one
        elif not fits:
            yield replace(one, reason=OVER_BUDGET)
