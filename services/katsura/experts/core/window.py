"""In which order frames that are there at once are served, which are computed together, and which no longer can be.

Nothing waits for a frame that is not there: the window is what one poll brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from katsura.domain.cost import FrameCost


@dataclass(frozen=True, slots=True)
class Waiting:
    """A frame that has arrived: its place in the window, when its client gives it up, and how much it asks for."""

    index: int
    layer: int
    expires_s: float
    units: int
    token_units: int


@dataclass(frozen=True, slots=True)
class Window:
    """What to do with the frames of a window, by their index.

    Attributes:
        batches: computed in this order; frames of one batch are of one layer and share its weight reads.
        expired: their clients no longer wait.
        overloaded: their clients would no longer wait by the time they are done; another copy may be quicker.
    """

    batches: tuple[tuple[int, ...], ...]
    expired: tuple[int, ...] = ()
    overloaded: tuple[int, ...] = ()


def arrange(frames: Sequence[Waiting], now_s: float, cost: FrameCost, fuse: bool) -> Window:
    """Deepest layer first, since that frees a client soonest; among equals the most urgent first.

    Args:
        frames: what is there.
        now_s: the clock that `expires_s` is on.
        cost: measured.
        fuse: whether frames of one layer may be computed together (the deployment's numerics are invariant).
    """
    alive = [frame for frame in frames if frame.expires_s > now_s]
    batches: list[list[int]] = []
    overloaded: list[int] = []
    last_layer, done_s = -1, now_s
    for frame in sorted(alive, key=lambda each: (-each.layer, each.expires_s, each.index)):
        joins = fuse and bool(batches) and frame.layer == last_layer
        units = 0 if joins else frame.units
        ends_s = done_s + cost.predict_s(units, frame.token_units)
        if ends_s > frame.expires_s and batches:
            overloaded.append(frame.index)
            continue
        done_s, last_layer = ends_s, frame.layer
        if joins:
            batches[-1].append(frame.index)
        else:
            batches.append([frame.index])
    expired = tuple(frame.index for frame in frames if frame.expires_s <= now_s)
    return Window(tuple(map(tuple, batches)), expired, tuple(overloaded))
