"""What the cost model says of one instance at every batch: the pace at which `simulate` lets it draw and prefill."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katsura.placement.cost import Layout, decode_terms
from katsura.placement.pairs import decode_s, moved_bytes, prompt_s
from katsura.placement.patterns import Column, Member, Unit, half_of, link_of, parts_of, pool_of, units_of
from katsura.placement.problem import PAIR, PIPELINE, UNIFIED, ModelService, NodeClass, Problem
from katsura.placement.split import Steps, prefill_s

_CHUNK_CPU: Final = 256
_CHUNK: Final = 2048
"""Prompt tokens that one step takes on cores (`batch.stepTokens`' default) and on accelerators."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Step time by batch while no prompt is computed, and a prompt's time.

    Attributes:
        steps: seconds, at each of `batches`. prompt_s: per new token. fixed_s: of every request before its first token.
        places: sequences at once. chunk: prompt tokens that one step of all shards takes besides the running sequences.
        aside: whether prompts are computed elsewhere and slow no running sequence.
    """

    batches: tuple[int, ...]
    steps: tuple[float, ...]
    prompt_s: float
    fixed_s: float
    places: int
    chunk: int
    aside: bool = False

    def step_s(self, running: int) -> float:
        """Seconds between tokens with `running` sequences and no prompt, interpolated; 0 with none."""
        if running <= self.batches[0]:
            return self.steps[0] if running else 0.0
        i = min(bisect_left(self.batches, running), len(self.batches) - 1)
        (b0, b1), (s0, s1) = self.batches[i - 1 : i + 1], self.steps[i - 1 : i + 1]
        return s0 + (s1 - s0) * (running - b0) / (b1 - b0)


def curve_of(problem: Problem, column: Column, service: ModelService) -> Curve:
    """The cost model's answers for `column` at batches up to its planned one."""
    problem = problem.of(service)
    classes = {c.name: c for c in problem.classes}
    column = _together(column, classes)
    assert column.point is not None
    units = []
    for m in column.members:
        wanted = m.accelerators or int(m.cores)
        units.append(next(u for u in units_of(classes[m.node_class]) if u.count == wanted))
    lead, places = units[0], column.point.batch
    if column.topology == PAIR:
        return _pair(problem, column, service, units)
    if column.topology == PIPELINE:
        return _pipeline(problem, column, service, units)
    batches = tuple(sorted({1, *(2**i for i in range(1, places.bit_length())), places}))
    c, shards = problem.known(lead.device, lead.count), 1
    card, precision, load = service.card, service.precision, service.load
    if column.topology == UNIFIED:
        layout = Layout() if lead.is_cpu else Layout(lead.count, per_node=lead.count)
        terms = [decode_terms(card, lead.device, precision, layout, b, load) for b in batches]
        steps = [c.step_s(t.decoding) for t in terms]
        prompt = (c.step_s(terms[0]) - steps[0]) * load.output
    else:
        shards, members = (m.count for m in column.members)
        pool = pool_of(problem, units[0], units[1], shards, members, service.units)
        prompt = prefill_s(card, precision, pool, load) / shards
        micro = column.point.micro_batches
        paced = Steps(card, precision, pool, load)
        steps = [paced.step_s(b, min(micro, b)) for b in batches]
    chunk = _CHUNK_CPU if lead.is_cpu else _CHUNK
    return Curve(batches, tuple(steps), prompt / load.new_prompt, c.first[0], places, chunk * shards)


def _together(column: Column, classes: Mapping[str, NodeClass]) -> Column:
    """Processes of one role on one kind of device as one entry, whatever classes their nodes are of."""
    found: dict[object, Member] = {}
    for m in column.members:
        c = classes[m.node_class]
        kind = m.role, m.accelerators or m.cores, (c.device or c.core).name
        found[kind] = replace(m, count=m.count + found[kind].count) if kind in found else m
    return replace(column, members=tuple(found.values()))


def _pair(problem: Problem, column: Column, service: ModelService, units: Sequence[Unit]) -> Curve:
    assert column.point is not None
    card, precision, load = service.card, service.precision, service.load
    prefill, decode = (half_of(problem, u, m.count) for u, m in zip(units, column.members, strict=True))
    each = column.point.batch // decode.replicas
    batches = tuple(sorted({1, *(2**i for i in range(1, each.bit_length())), each}))
    moved = moved_bytes(card, precision, load) / link_of(*units)
    return Curve(
        batches=tuple(b * decode.replicas for b in batches),
        steps=tuple(decode_s(card, precision, decode, b, load) for b in batches),
        prompt_s=max(prompt_s(card, precision, prefill, load), moved) / load.new_prompt / prefill.replicas,
        fixed_s=prefill.coefficients.first[0] + moved,
        places=column.point.batch,
        chunk=_CHUNK,
        aside=True,
    )


def _pipeline(problem: Problem, column: Column, service: ModelService, units: Sequence[Unit]) -> Curve:
    """As many micro-batches as stages are under way; a chunk of a prompt holds them up for its slowest stage."""
    assert column.point is not None
    parts = parts_of(problem, service, [(u, m.count) for u, m in zip(units, column.members, strict=True)], {})
    of_stage = (kind for kind, m in zip(parts.kinds, column.members, strict=True) for _ in range(m.count))
    stages = list(zip(of_stage, column.point.stages, strict=True))
    places, depth = column.point.batch, len(stages)
    batches = tuple(sorted({1, *(2**i for i in range(1, places.bit_length())), places}))
    through, slowest = parts.prompt_s(stages)
    fixed = max(kind.coefficients.first[0] for kind, _ in stages)
    return Curve(
        batches=batches,
        steps=tuple(parts.loop_s(stages, max(1.0, b / depth)) for b in batches),
        prompt_s=slowest / service.load.new_prompt,
        fixed_s=fixed + through - slowest,
        places=places,
        chunk=_CHUNK,
    )
