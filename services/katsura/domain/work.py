"""Work that a tree waits for: summaries to be written or judged by a worker outside, a language model's for instance.

A task is claimed under a lease. Each claim draws a higher fencing token, and what a worker writes is taken only while
its token is the newest: a lease that ends is taken over, and the late worker is refused, not believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from katsura.domain.ids import BranchName, NodeId
from katsura.domain.trees import ROOT

EXTERNAL: Final = "external"
"""Stands for a worker outside where a policy names a compressor or a validator."""
ATTEMPTS_MAX: Final = 5
"""Claims of one task; then it is given up until somebody schedules it again."""


class WorkKind(IntEnum):
    """What a worker is asked for (numbers of the API)."""

    UNSPECIFIED = 0
    COMPRESS = 1
    """A summary of the raw segment of a branch."""
    VALIDATE = 2
    """A verdict about a summary that is PENDING."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A task of one tree. Times are milliseconds by the store's clock.

    Attributes:
        work_id: `compress:<branch>` or `validate:<summary>`: what is asked for twice is one task.
        branch: on which; of VALIDATE, where the verdict is written.
        summary: of VALIDATE, the summary.
        base, last: of COMPRESS that is claimed, the step before the segment and its last one.
        attempts: claims so far.
        token: fencing token of the newest claim; 0 before the first.
        worker: who holds it; empty where nobody does.
        lease_end_ms: when it may be taken over; 0 where nobody holds it.
        ready_ms: not to be claimed before.
        reason: why the last attempt failed, for the next one.
        given_up: whether it waits for somebody to schedule it again.
    """

    work_id: str
    kind: WorkKind
    branch: BranchName
    summary: NodeId = ROOT
    base: NodeId = ROOT
    last: NodeId = ROOT
    attempts: int = 0
    token: int = 0
    worker: str = ""
    lease_end_ms: int = 0
    ready_ms: int = 0
    create_ms: int = 0
    reason: str = ""
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Fence:
    """Who claims to hold a task: compared with the newest claim where it writes."""

    work_id: str
    token: int
    worker: str


def work_id(kind: WorkKind, branch: str, summary: int) -> str:
    """The name of a task."""
    return f"compress:{branch}" if kind is WorkKind.COMPRESS else f"validate:{summary}"
