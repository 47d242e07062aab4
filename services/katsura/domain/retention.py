"""What stays of a tree although nobody goes on from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KEEP_ABANDONED: Final = 8
"""Abandoned branches that stay where nobody said how many."""
KEEP_REVISIONS: Final = 1000
"""Newest revisions that stay where nobody said how many."""


@dataclass(frozen=True, slots=True)
class Retention:
    """The newest abandoned branches, and the newest revisions, stay.

    Attributes:
        abandoned: branches that stay.
        revisions: whose nodes and events stay.
        abandoned_s: a branch goes so long after it was left, however few there are; 0 sets no age.
    """

    abandoned: int = KEEP_ABANDONED
    revisions: int = KEEP_REVISIONS
    abandoned_s: int = 0
