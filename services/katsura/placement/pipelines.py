"""A model cut by layers: every stage holds some of them on a slice of a node, and micro-batches follow each other.

For models that no node holds. Stages may be of unlike kinds: each takes as many layers as it computes within one
cycle, and as its memory holds beside the KV of all sequences that are under way. The cheapest stages that hold all
layers are a covering knapsack. `patterns` calls `pipelines` where nothing else fits or where it is asked for: our own
engine does not run pipelines, so a plan says that these are planned only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Final

from katsura.placement.card import ModelCard
from katsura.placement.catalogue import Device
from katsura.placement.cost import (
    Coefficients,
    ErrorClass,
    Layout,
    Load,
    Precision,
    decode_terms,
    prefill_floor_s,
    prefill_ring_s,
    sequence_bytes,
    weights_bytes,
)
from katsura.placement.operate import UTILISATION, Point, Refusal, Slo, wait_s

_DEPTHS: Final = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
"""Most stages that are tried."""
_MICRO: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
"""Sequences of one micro-batch."""
_PACES: Final = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)
"""Cycles that are tried, as parts of the longest allowed one."""


@dataclass(frozen=True, slots=True)
class StageKind:
    """Slices of nodes that may be stages: at most `most` of them, for `price` each, with what was measured on them."""

    device: Device
    layout: Layout
    coefficients: Coefficients
    most: int
    price: float


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Layers of every stage by kind, and where the whole runs. `memory_bytes`: of one device of each kind."""

    layers: tuple[tuple[int, ...], ...]
    memory_bytes: tuple[float, ...]
    point: Point


@dataclass(frozen=True, slots=True)
class Parts:
    """What a pipeline over `kinds` is made of, per layer and stage."""

    card: ModelCard
    precision: Precision
    load: Load
    kinds: tuple[StageKind, ...]
    link_bytes_s: float
    hop_s: float

    def layer_s(self, kind: StageKind, micro: float) -> float:
        """Seconds of one layer for a micro-batch, with its share of the prompts that come."""
        terms = decode_terms(self.card, kind.device, self.precision, kind.layout, micro, self.load)
        return kind.coefficients.step_s(terms) / self.card.layers

    def weights(self, kind: StageKind) -> float:
        """Bytes of one layer on one device; embedding and head are spread over all layers."""
        return weights_bytes(self.card, self.precision, kind.layout) / self.card.layers

    def sequence(self, kind: StageKind) -> float:
        """KV bytes of one sequence in one layer on one device, at its longest."""
        return sequence_bytes(self.card, self.precision, kind.layout, self.load) / self.card.layers

    def held(self, kind: StageKind, sequences: float) -> int:
        """Layers that fit beside the KV of `sequences`."""
        return int(kind.device.usable_bytes / (self.weights(kind) + sequences * self.sequence(kind)))

    def way_s(self, micro: float) -> float:
        """Seconds from stage to stage: activations of a micro-batch's tokens and of its share of new prompts."""
        tokens = micro * (1 + self.load.new_prompt / self.load.output)
        return self.hop_s + tokens * self.card.hidden * 2 / self.link_bytes_s

    def loop_s(self, stages: Sequence[tuple[StageKind, int]], micro: float) -> float:
        """Seconds between two tokens of a sequence, with as many micro-batches under way as there are stages."""
        times = [layers * self.layer_s(kind, micro) for kind, layers in stages]
        way = self.way_s(micro)
        return max(sum(times) + len(stages) * way, len(stages) * max(*times, way))

    def prompt_s(self, stages: Sequence[tuple[StageKind, int]]) -> tuple[float, float]:
        """Seconds of one prompt through all stages, and of the slowest stage alone."""
        times = []
        for kind, layers in stages:
            floor = prefill_floor_s(self.card, kind.device, self.precision, kind.layout, self.load)
            ring = prefill_ring_s(self.card, kind.device, kind.layout, self.load)
            own = kind.coefficients.first[1] * floor + kind.coefficients.first_collective[0] * ring
            times.append(own * layers / self.card.layers)
        way = self.hop_s + self.load.new_prompt * self.card.hidden * 2 / self.link_bytes_s
        return sum(times) + (len(stages) - 1) * way, max(times)


def cover(layers: int, held: Sequence[int], most: Sequence[int], price: Sequence[float]) -> tuple[int, ...] | None:
    """How many stages of each kind hold `layers` layers for the least price, then with the fewest stages; None: none.

    Args:
        held: layers of one stage by kind. most: stages there are. price: of one.
    """
    best: list[tuple[float, int, tuple[int, ...]]] = [(inf, 0, ())] * (layers + 1)
    best[0] = (0.0, 0, (0,) * len(held))
    for kind, (many, limit, usd) in enumerate(zip(held, most, price, strict=True)):
        left, size = min(limit, -(-layers // many)) if many > 0 else 0, 1
        while left > 0:
            size = min(size, left)
            left -= size
            for at in range(layers, 0, -1):
                cost, count, chosen = best[max(0, at - size * many)]
                if (cost + size * usd, count + size) < best[at][:2]:
                    more = (*chosen[:kind], chosen[kind] + size, *chosen[kind + 1 :])
                    best[at] = (cost + size * usd, count + size, more)
            size *= 2
    return best[layers][2] if best[layers][0] < inf else None


def pipelines(parts: Parts, slo: Slo, margin: float) -> tuple[list[Pipeline], Refusal | None]:
    """Pipelines of several depths and paces that keep `slo`, no two alike; or why there is none."""
    if not parts.kinds:
        return [], None
    for kind in parts.kinds:
        if (why := kind.coefficients.beyond(parts.load.context)) is not None:
            return [], Refusal("extrapolation", why)
    found: dict[object, Pipeline] = {}
    last: Refusal = Refusal("memory", "all its nodes together do not hold its layers")
    for counts, held, micro in _covers(parts, slo, margin):
        made = _pipeline(parts, counts, held, micro, slo, margin)
        if isinstance(made, Refusal):
            last = made
        else:
            found.setdefault((made.layers, made.point.batch), made)
    return list(found.values()), None if found else last


def _covers(parts: Parts, slo: Slo, margin: float) -> Iterator[tuple[tuple[int, ...], list[int], int]]:
    """Stages by kind with the layers that each may take, and the micro-batch they are meant for."""
    kinds, layers = parts.kinds, parts.card.layers
    times = cache(lambda micro: [parts.layer_s(k, micro) for k in kinds])
    smallest = max(k.coefficients.batches[0] for k in kinds)
    largest = min(k.coefficients.batches[1] for k in kinds)
    for depth in _DEPTHS:
        if depth > sum(k.most for k in kinds) or depth > layers:
            break
        for micro in (b for b in _MICRO if smallest <= b <= largest):
            fits = [min(layers, parts.held(k, depth * micro)) for k in kinds]
            if not any(fits):
                break
            slowest = max(n * s for n, s in zip(fits, times(micro), strict=True))
            allowed = slowest if slo.itl_s is None else min(slowest, slo.itl_s / margin / depth)
            for pace in _PACES:
                held = [min(n, int(pace * allowed / s)) for n, s in zip(fits, times(micro), strict=True)]
                counts = cover(layers, held, [k.most for k in kinds], [k.price for k in kinds])
                if counts is not None and 1 < sum(counts) <= depth:
                    yield counts, held, micro


def _pipeline(
    parts: Parts, counts: Sequence[int], held: Sequence[int], micro: int, slo: Slo, margin: float
) -> Pipeline | Refusal:
    layers = _shaved(parts, counts, held, micro)
    stages = [(kind, n) for kind, mine in zip(parts.kinds, layers, strict=True) for n in mine]
    itl = parts.loop_s(stages, micro)
    if slo.itl_s is not None and itl * margin > slo.itl_s:
        return Refusal("itl", f"{itl * margin * 1e3:.0f} ms between tokens, {slo.itl_s * 1e3:.0f} ms allowed")
    batch, (prompt, _) = micro * len(stages), parts.prompt_s(stages)
    fixed = max(kind.coefficients.first[0] for kind, _ in stages)
    ttft = fixed + prompt + itl + wait_s(batch, parts.load.output * itl)
    if slo.ttft_s is not None and ttft * margin > slo.ttft_s:
        return Refusal("ttft", f"{ttft * margin * 1e3:.0f} ms to the first token, {slo.ttft_s * 1e3:.0f} ms allowed")
    memory = tuple(
        max(mine, default=0) * (parts.weights(kind) + batch * parts.sequence(kind))
        for kind, mine in zip(parts.kinds, layers, strict=True)
    )
    trusted = [kind.coefficients.trust(micro, parts.load.context) for kind, _ in stages]
    requests_s = UTILISATION * batch / (parts.load.output * itl)
    point = Point(
        batch=batch,
        itl_s=itl,
        ttft_s=ttft,
        requests_s=requests_s,
        limit="kv" if slo.itl_s is None else "itl",
        error_class=max(trusted, key=list(ErrorClass).index),
        memory_bytes=max(memory),
        link_bytes_s=requests_s * (parts.load.new_prompt + parts.load.output) * parts.card.hidden * 2,
        micro_batches=len(stages),
        stages=tuple(n for mine in layers for n in mine),
    )
    return Pipeline(layers, memory, point)


def _shaved(parts: Parts, counts: Sequence[int], held: Sequence[int], micro: int) -> tuple[tuple[int, ...], ...]:
    """Layers of each stage: what `held` allows, less what is too much, taken from the slowest stage each time."""
    made = [[n] * count for n, count in zip(held, counts, strict=True)]
    seconds = [parts.layer_s(kind, micro) for kind in parts.kinds]
    for _ in range(sum(map(sum, made)) - parts.card.layers):
        stages = ((n * seconds[k], k, i) for k, mine in enumerate(made) for i, n in enumerate(mine) if n > 1)
        _, kind, stage = max(stages)
        made[kind][stage] -= 1
    return tuple(tuple(sorted(mine, reverse=True)) for mine in made)
