"""The weights that a member holds, and what it computes with them: one f32 partial per (token, group)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from katsura.domain.errors import FailedPreconditionError, OutOfRangeError, ResourceExhaustedError
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.domain.units import human_bytes
from katsura.experts.core.residency import Key
from katsura.model.config import ModelConfig
from katsura.model.ffn import group_partial
from katsura.model.gate import Routing
from katsura.model.kernels import KernelPlan
from katsura.model.weights import GroupWeights
from katsura.weights.load import load_group
from katsura.weights.reader import Checkpoint
from katsura.wire.frame import Dispatch, GroupSums


def group_bytes(shape: ModelShape, layout: FfnLayout, kernels: KernelPlan) -> int:
    """Bytes of the weights of one group of one layer."""
    width = shape.ffn_size if shape.is_moe else shape.ffn_size // layout.unit_count
    return 3 * shape.hidden_size * width * layout.units_per_group * kernels.dtype.size_bytes


@dataclass(frozen=True, slots=True)
class Holdings:
    """What model a member serves a part of, and how much of it may be held."""

    folder: Path
    config: ModelConfig
    layout: FfnLayout
    kernels: KernelPlan
    capacity_bytes: int


class Groups:
    """Loaded groups by (layer, group)."""

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings
        self._held: dict[Key, GroupWeights] = {}
        self._bytes = 0

    @property
    def keys(self) -> frozenset[Key]:
        """What is loaded."""
        return frozenset(self._held)

    def has(self, key: Key) -> bool:
        """Whether (layer, group) is loaded."""
        return key in self._held

    @property
    def loaded_bytes(self) -> int:
        """Bytes of what is loaded."""
        return self._bytes

    def check(self, keys: Sequence[Key]) -> None:
        """Raise OutOfRangeError if the model has not all of `keys`, ResourceExhaustedError if they do not fit."""
        shape, layout = self.holdings.config.shape, self.holdings.layout
        for layer, group in keys:
            if not (0 <= layer < shape.layer_count and 0 <= group < layout.group_count):
                raise OutOfRangeError(
                    f"layer {layer}, group {group}: this model has {shape.layer_count} layers of {layout.group_count} "
                    "groups",
                    field="groups",
                )
        new = len(set(keys) - self.keys)
        needed = self._bytes + new * group_bytes(shape, layout, self.holdings.kernels)
        if needed > self.holdings.capacity_bytes:
            raise ResourceExhaustedError(
                f"{new} more groups need {human_bytes(needed)}, this member may hold "
                f"{human_bytes(self.holdings.capacity_bytes)}; unload some or raise KATSURA_CAPACITY_BYTES",
            )

    def load(self, checkpoint: Checkpoint, key: Key) -> None:
        """Read and pack one group; one that is there stays."""
        if key not in self._held:
            h = self.holdings
            with torch.inference_mode():
                held = load_group(checkpoint, h.config, h.layout, *key, h.kernels)
            self._held[key] = held
            self._bytes += held.size_bytes

    def free(self, key: Key) -> None:
        """Let go of one group."""
        held = self._held.pop(key, None)
        if held is not None:
            self._bytes -= held.size_bytes

    def compute(self, frames: Sequence[Dispatch]) -> list[list[GroupSums]]:
        """Partial sums of every frame, which are of one layer; groups that several ask for read their weights once."""
        layer = frames[0].header.layer
        if len(frames) == 1 and frames[0].routes is None:
            hidden = frames[0].hidden
            return [[GroupSums(g, None, group_partial(self._held[layer, g], hidden, None)) for g in frames[0].groups]]
        answers: list[list[GroupSums]] = [[] for _ in frames]
        for group in sorted({group for frame in frames for group in frame.groups}):
            asking = [index for index, frame in enumerate(frames) if group in frame.groups]
            parts = [_part(frames[index], group) for index in asking]
            sums = self._sums(self._held[layer, group], parts)
            for index, part, of_part in zip(asking, parts, sums, strict=True):
                answers[index].append(GroupSums(group, part.rows, of_part))
        return answers

    def held(self, key: Key) -> GroupWeights:
        """A loaded group. Raises FailedPreconditionError if it is not."""
        if key not in self._held:
            raise FailedPreconditionError(f"layer {key[0]}, group {key[1]} is not loaded; load it first")
        return self._held[key]

    def _sums(self, weights: GroupWeights, parts: Sequence[_Part]) -> list[Tensor]:
        counts = [part.hidden.shape[0] for part in parts]
        if len(parts) == 1:
            part = parts[0]
            return [group_partial(weights, part.hidden, part.routing) if counts[0] else part.hidden.float()]
        hidden = torch.cat([part.hidden for part in parts])
        routings = [part.routing for part in parts if part.routing is not None]
        routing = _stacked(routings) if routings else None
        whole = group_partial(weights, hidden, routing) if sum(counts) else hidden.float()
        return list(torch.split(whole, counts))


@dataclass(frozen=True, slots=True)
class _Part:
    """A frame's tokens that use one group. `rows` (i32) name them in the frame; None: all of them."""

    hidden: Tensor
    routing: Routing | None
    rows: Tensor | None


_NO_EXPERT = 1 << 20
"""Fills routes up to a rectangle; larger than any expert id, so it is sorted behind them and used by none."""


def _part(frame: Dispatch, group: int) -> _Part:
    if frame.routes is None:
        return _Part(frame.hidden, None, None)
    span = frame.routes.span(frame.groups.index(group))
    rows, at, counts = torch.unique_consecutive(frame.routes.rows[span], return_inverse=True, return_counts=True)
    widest = int(counts.max()) if len(counts) else 0
    place = torch.arange(len(at)) - (counts.cumsum(0) - counts)[at]
    ids = torch.full((len(rows), widest), _NO_EXPERT, dtype=torch.int64)
    weights = torch.zeros(len(rows), widest)
    ids[at, place] = frame.routes.units[span].long()
    weights[at, place] = frame.routes.weights[span]
    return _Part(frame.hidden.index_select(0, rows), Routing(ids, weights), rows)


def _stacked(routings: Sequence[Routing]) -> Routing:
    widest = max(routing.ids.shape[1] for routing in routings)
    pads = [(0, widest - routing.ids.shape[1]) for routing in routings]
    pad = torch.nn.functional.pad
    ids = [pad(routing.ids, by, value=_NO_EXPERT) for routing, by in zip(routings, pads, strict=True)]
    weights = [pad(routing.weights, by) for routing, by in zip(routings, pads, strict=True)]
    return Routing(torch.cat(ids), torch.cat(weights))
