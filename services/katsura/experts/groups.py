"""The weights that a member holds, and what it computes with them: one f32 partial per (token, group)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from katsura.domain.errors import FailedPreconditionError, OutOfRangeError, ResourceExhaustedError
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.domain.units import human_bytes
from katsura.experts.core.residency import Key
from katsura.model.config import ModelConfig
from katsura.model.ffn import GroupSet, group_partial
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
    """Loaded groups by (layer, group).

    Dense groups of a layer that the table makes us primary of are fused (`model.ffn.GroupSet`): the same bits in fewer
    products. A fused set cannot be taken apart; where one of it is freed, or another table names other groups, its
    groups are read anew.
    """

    def __init__(self, holdings: Holdings, checkpoint: Checkpoint) -> None:
        self.holdings = holdings
        self._checkpoint = checkpoint
        self._keys: set[Key] = set()
        self._singles: dict[Key, GroupWeights] = {}
        self._sets: dict[int, list[tuple[tuple[int, ...], GroupSet]]] = {}
        self._ready: dict[tuple[int, ...], dict[int, GroupSet]] = {}
        self._group_bytes = group_bytes(holdings.config.shape, holdings.layout, holdings.kernels)
        self._fuses = holdings.kernels.fuse_groups and not holdings.config.shape.is_moe

    @property
    def keys(self) -> frozenset[Key]:
        """What is loaded."""
        return frozenset(self._keys)

    def has(self, key: Key) -> bool:
        """Whether (layer, group) is loaded."""
        return key in self._keys

    @property
    def loaded_bytes(self) -> int:
        """Bytes of what is loaded."""
        return len(self._keys) * self._group_bytes

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
        new = len(set(keys) - self._keys)
        needed = self.loaded_bytes + new * self._group_bytes
        if needed > self.holdings.capacity_bytes:
            raise ResourceExhaustedError(
                f"{new} more groups need {human_bytes(needed)}, this member may hold "
                f"{human_bytes(self.holdings.capacity_bytes)}; unload some or raise KATSURA_CAPACITY_BYTES",
            )

    def load(self, key: Key) -> None:
        """Read and pack one group; one that is there stays."""
        if key not in self._keys:
            self._read(key)
            self._keys.add(key)

    def free(self, key: Key) -> None:
        """Let go of one group."""
        self._keys.discard(key)
        self._forget_ready()
        if self._singles.pop(key, None) is not None:
            return
        layer, group = key
        for fused in [each for each in self._sets.get(layer, ()) if group in each[0]]:
            self._take_apart(layer, fused)

    def fuse(self, layer: int, groups: Sequence[int]) -> None:
        """Prepare for frames that ask for just these `groups` together; what is not loaded is left alone."""
        wanted = tuple(group for group in groups if (layer, group) in self._keys)
        sets = self._sets.get(layer, [])
        for fused in [each for each in sets if each[0] != wanted and not set(wanted).isdisjoint(each[0])]:
            self._take_apart(layer, fused)
        if len(wanted) > 1 and self._fuses and all((layer, group) in self._singles for group in wanted):
            with torch.inference_mode():
                fused_set = GroupSet([self._singles.pop((layer, group)) for group in wanted], self.holdings.kernels)
            self._sets.setdefault(layer, []).append((wanted, fused_set))
            self._forget_ready()

    def ready(self, groups: tuple[int, ...]) -> Mapping[int, GroupSet]:
        """By layer, exactly these dense groups as one set; no layer where they are not loaded, or not held together.

        The mapping is live: it follows what is fused, freed and computed.
        """
        return self._ready.setdefault(groups, {})

    def compute(self, frames: Sequence[Dispatch]) -> list[list[GroupSums]]:
        """Partial sums of every frame, which are of one layer; groups that several ask for read their weights once."""
        if all(frame.routes is None for frame in frames):
            return self._compute_uniform(frames)
        answers: list[list[GroupSums]] = [[] for _ in frames]
        layer = frames[0].header.layer
        for group in sorted({group for frame in frames for group in frame.groups}):
            asking = [index for index, frame in enumerate(frames) if group in frame.groups]
            parts = [_part(frames[index], group) for index in asking]
            sums = _routed_sums(self._singles[layer, group], parts)
            for index, part, of_part in zip(asking, parts, sums, strict=True):
                answers[index].append(GroupSums(group, part.rows, of_part))
        return answers

    def partial(self, key: Key, hidden: Tensor, routing: Routing | None) -> Tensor:
        """f32 `[tokens, width]` of one group. FailedPreconditionError if it is not loaded."""
        if key not in self._keys:
            raise FailedPreconditionError(f"layer {key[0]}, group {key[1]} is not loaded; load it first")
        if routing is not None:
            return group_partial(self._singles[key], hidden, routing)
        return self._partials(key[0], (key[1],), hidden)[key[1]]

    def _compute_uniform(self, frames: Sequence[Dispatch]) -> list[list[GroupSums]]:
        layer, first = frames[0].header.layer, frames[0].groups
        if all(frame.groups == first for frame in frames):
            tokens = [frame.hidden for frame in frames]
            hidden = tokens[0] if len(frames) == 1 else torch.cat(tokens)
            found = self._partials(layer, first, hidden)
            counts = [each.shape[0] for each in tokens]
            split = {group: torch.split(found[group], counts) for group in first}
            return [[GroupSums(group, None, split[group][index]) for group in first] for index in range(len(frames))]
        return [self._compute_uniform([frame])[0] for frame in frames]

    def _partials(self, layer: int, groups: tuple[int, ...], hidden: Tensor) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for of, fused in self._sets.get(layer, ()):
            if not set(groups).isdisjoint(of):
                found |= fused.partials(hidden, None)
                if of == groups:
                    self._ready.setdefault(groups, {})[layer] = fused
        for group in groups:
            if group not in found:
                single = GroupSet([self._singles[layer, group]], self.holdings.kernels)
                found |= single.partials(hidden, None)
                if groups == (group,):
                    self._ready.setdefault(groups, {})[layer] = single
        return found

    def _forget_ready(self) -> None:
        for by_layer in self._ready.values():
            by_layer.clear()

    def _take_apart(self, layer: int, fused: tuple[tuple[int, ...], GroupSet]) -> None:
        """Read what is still ours of a set anew; if that fails, the set stays."""
        for group in fused[0]:
            if (layer, group) in self._keys:
                self._read((layer, group))
        self._sets[layer].remove(fused)
        self._forget_ready()

    def _read(self, key: Key) -> None:
        h = self.holdings
        with torch.inference_mode():
            self._singles[key] = load_group(self._checkpoint, h.config, h.layout, *key, h.kernels)


def _routed_sums(weights: GroupWeights, parts: Sequence[_Part]) -> list[Tensor]:
    counts = [part.hidden.shape[0] for part in parts]
    hidden = torch.cat([part.hidden for part in parts])
    if not sum(counts):
        return [part.hidden.float() for part in parts]
    whole = group_partial(weights, hidden, _stacked([part.routing for part in parts]))
    return list(torch.split(whole, counts))


@dataclass(frozen=True, slots=True)
class _Part:
    """A frame's tokens that use one group: their activations, their routes to it, and which of the frame they are."""

    hidden: Tensor
    routing: Routing
    rows: Tensor


_NO_EXPERT = 1 << 20
"""Fills routes up to a rectangle; larger than any expert id, so it is sorted behind them and used by none."""


def _part(frame: Dispatch, group: int) -> _Part:
    assert frame.routes is not None, "frames of one layer are all routed or none is"
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
