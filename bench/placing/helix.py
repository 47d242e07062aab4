"""Helix's program (ASPLOS 2025, arXiv 2406.01566) on one model and one cluster, priced by our cost model.

Every node holds a run of layers; tokens flow from a source through nodes whose runs follow each other to a sink; the
program places layers so that the flow is largest. Variables: first layer s_i, held layers b_ik, flows f, which edges
are open d (big-M). Weights take at most half of the memory, as in Helix. A node with k of L layers works on k/L of the
sequences whose KV it holds, the others are elsewhere in the pipeline; in its favour, stages never wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from katsura.placement import calibration
from katsura.placement.catalogue import Device
from katsura.placement.cost import Layout, decode_terms, sequence_bytes, weights_bytes
from katsura.placement.highs import Answer, Program, solve
from katsura.placement.operate import UTILISATION
from katsura.placement.problem import Effort, ModelService

BATCH_MAX = 1024


@dataclass(frozen=True)
class Stage:
    """One node: output tokens per second by layers held (index 0: one layer), and out of its link."""

    name: str
    rates: tuple[float, ...]
    link: float


def stage_of(name: str, device: Device, count: int, service: ModelService) -> Stage:
    card, precision, load = service.card, service.precision, service.load
    layout, c = Layout(count, per_node=count), calibration.built_in().of(device)
    weights = weights_bytes(card, precision, layout) / card.layers
    kv = sequence_bytes(card, precision, layout, load) / card.layers
    rates = []
    for k in range(1, card.layers + 1):
        if k * weights > device.usable_bytes / 2:
            break
        held = (device.usable_bytes - k * weights) / (k * kv)
        batch = min(BATCH_MAX, held * k / card.layers)
        step = c.step_s(decode_terms(card, device, precision, layout, batch, load)) * k / card.layers
        rates.append(UTILISATION * batch / step)
    activation = 2 * card.hidden * (load.new_prompt + load.output) / load.output  # bytes per output token
    return Stage(name, tuple(rates), device.inter_bytes_s / activation)


class Helix:
    """The program over `stages`; its optimum in output tokens per second is `unit` times the negated objective."""

    def __init__(self, stages: Sequence[Stage], layers: int) -> None:
        self.stages, self.layers = stages, layers
        self.unit = max(max(s.rates) for s in stages)
        self.p = p = Program()
        n = len(stages)
        self.s = [p.variable("", 0, 0, layers - 1, True) for _ in stages]
        self.b = [[p.variable("", 0, 0, 1, True) for _ in s.rates] for s in stages]
        edges = [(i, j) for i in range(-1, n) for j in range(n + 1) if i != j and (i, j) != (-1, n)]
        self.f = {e: p.variable("", -1.0 if e[0] < 0 else 0.0, 0, self._most(e)) for e in edges}
        self.d = {e: p.variable("", 0, 0, 1, True) for e in edges}
        for i, own in enumerate(self.b):
            p.row("", dict.fromkeys(own, 1.0), low=1, high=1)
            p.row("", self._end(i), high=layers)
            into = {self.f[e]: 1.0 for e in edges if e[1] == i}
            p.row("", {**into, **{self.f[e]: -1.0 for e in edges if e[0] == i}}, low=0, high=0)
            p.row("", {**into, **{v: -r / self.unit for v, r in zip(own, stages[i].rates, strict=True)}}, high=0)
        for e in edges:
            p.row("", {self.f[e]: 1.0, self.d[e]: -self._most(e)}, high=0)
            self._follow(*e)

    def _most(self, edge: tuple[int, int]) -> float:
        """The most that can flow over an edge: what both ends compute, and what the sender's link carries."""
        ends = [self.stages[i] for i in edge if 0 <= i < len(self.stages)]
        sender = [self.stages[edge[0]].link] if edge[0] >= 0 else []
        return min([*(max(s.rates) for s in ends), *sender]) / self.unit

    def _end(self, i: int) -> dict[int, float]:
        """The layer after the last that node `i` holds."""
        return {self.s[i]: 1.0, **{v: float(k + 1) for k, v in enumerate(self.b[i])}}

    def _follow(self, i: int, j: int) -> None:
        """An open edge joins runs that follow each other: s_j <= e_i < e_j (the overlap is computed once)."""
        p, layers, n, open_ = self.p, self.layers, len(self.stages), self.d[i, j]
        if i < 0:
            p.row("", {self.s[j]: 1.0, open_: layers}, high=layers)
        elif j == n:
            p.row("", {**self._end(i), open_: -layers}, low=0)
        else:
            minus = {v: -x for v, x in self._end(i).items()}
            p.row("", {**minus, self.s[j]: 1.0, open_: layers}, high=layers)
            p.row("", {**minus, **self._end(j), open_: -(layers + 1)}, low=-layers)

    def pipelines(self) -> list[float]:
        """Helix's first guess: nodes of one kind after another, each with all it may hold, cut into whole pipelines."""
        values = [0.0] * len(self.p.names)
        chain: list[tuple[int, int, int]] = []
        at = 0
        for i in sorted(range(len(self.stages)), key=lambda i: (-len(self.stages[i].rates), i)):
            k = min(len(self.stages[i].rates), self.layers - at)
            values[self.s[i]], values[self.b[i][k - 1]] = at, 1
            chain.append((i, at, k))
            at += k
            if at == self.layers:
                flow = min(self.stages[i].rates[k - 1] / self.unit for i, _, k in chain)
                path = [-1, *(i for i, _, _ in chain), len(self.stages)]
                edges = list(pairwise(path))
                flow = min(flow, *(self._most(e) for e in edges))
                for e in edges:
                    values[self.f[e]], values[self.d[e]] = flow, 1
                chain, at = [], 0
        return values

    def solve(self, seconds: float) -> Answer:
        return solve(self.p, Effort(gap=0.01, seconds=seconds), start=self.pipelines())
