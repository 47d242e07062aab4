"""Which path of a session's tree a conversation continues.

A client that speaks plain OpenAI sends the whole conversation each time. The longest path of the tree that equals its
beginning is kept: what follows is appended there if a branch ends there, and forks there if the branch went on
differently. So asking again, editing an earlier message and going on after a fork are all the same rule:

    tree   s1-u1-a1-u2-a2            sent  s1 u1 a1 u2 a2 u3    append u3 after a2
                                     sent  s1 u1 a1 v2          fork at a1, append v2
                                     sent  s1 u1 a1 u2          fork at u2, append nothing: another answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from katsura.gateway.core.chat_request import Message


@dataclass(frozen=True, slots=True)
class PathStep:
    """A step of a path: its node and what it shows."""

    node_id: int
    message: Message


@dataclass(frozen=True, slots=True)
class Path:
    """A branch's steps from the root; `writable` unless the branch was abandoned."""

    branch: str
    writable: bool
    steps: tuple[PathStep, ...]


@dataclass(frozen=True, slots=True)
class Continuation:
    """Where a conversation goes on.

    Attributes:
        branch: branch to append to, or to fork from.
        at_node: last node kept; 0 keeps nothing.
        fork: whether a new branch must be made at `at_node` first.
        new: messages to append there.
    """

    branch: str
    at_node: int
    fork: bool
    new: tuple[Message, ...]


def continuation(messages: Sequence[Message], paths: Sequence[Path]) -> Continuation:
    """Where `messages` go on in a tree with `paths`, the default branch first (it wins among equals)."""

    def rank(path: Path) -> tuple[int, bool]:
        kept = common_length(messages, path)
        return kept, path.writable and kept == len(path.steps)

    best = max(paths, key=rank)
    kept, ends_there = rank(best)
    at_node = best.steps[kept - 1].node_id if kept else 0
    return Continuation(best.branch, at_node, not ends_there, tuple(messages[kept:]))


def common_length(messages: Sequence[Message], path: Path) -> int:
    """How many leading messages equal the leading steps of `path`."""
    count = 0
    for message, step in zip(messages, path.steps, strict=False):
        if message != step.message:
            break
        count += 1
    return count
