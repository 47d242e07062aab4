"""The most tokens/s that any placement of a model's layers lets through: prices that no placement can pay.

Say a flow T goes through. Each layer is computed by one node that can take all of T, or shared by two nodes or more
whose rates add up to T; a node with k layers is part of at most k of these. How many layers the nodes pay for so is a
linear program, whole numbers given up. Its dual has a price for a node's part in a layer: where prices exist at which
every way to compute a layer costs at least one, but all nodes together are worth less than all layers, T cannot be.

Links count where T is more than any of those between partitions carries: two layers that follow each other and are
computed by one node each are then in one partition, so that between partitions some layer is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from katsura.placement.highs import INFINITY, Program, relax

UNITS = 2000
"""T in units of a rate. Rates are rounded up, but to less than T where they are less: more is let through, not less."""
EXACT = 1e-5
"""How far the bound may lie above the flow that these prices exclude."""
SLACK = 1e-7

Rates = tuple[float, ...]
Way = tuple[tuple[int, int], ...]
"""Which nodes share a layer: (index into `Prices.parts`, how many)."""


def bound(layers: int, rates: Sequence[Rates], partition: Sequence[int], crossing: float = INFINITY) -> float:
    """No placement of `layers` on the nodes lets more through.

    Args:
        rates: by node, tokens/s with 1, 2, ... layers. partition: of each node.
        crossing: the fastest link between two partitions, tokens/s.
    """
    prices = Prices(layers, rates, partition, crossing)
    low, high = 0.0, sum(max(r) for r in rates)
    while high - low > EXACT * high:
        middle = (low + high) / 2
        low, high = (low, middle) if prices.exclude(middle) else (middle, high)
    return high


class Prices:
    """Excludes flows; ways to share a layer that were found once are kept for the next flow."""

    def __init__(self, layers: int, rates: Sequence[Rates], partition: Sequence[int], crossing: float) -> None:
        self.layers, self.crossing = layers, crossing
        self.nodes = Counter(zip(partition, rates, strict=True))
        self.parts = [(own, k) for own in sorted(self.nodes) for k in range(1, len(own[1]) + 1)]
        self.ways: set[Way] = set()

    def exclude(self, flow: float) -> bool:
        """Whether no placement lets `flow` through."""
        every = sorted({own for own, _ in self.nodes})
        if flow <= self.crossing:
            return self._paid(flow, every, 0) < self.layers
        alone = (chosen for n in range(1, len(every) + 1) for chosen in combinations(every, n))
        return all(self._paid(flow, chosen, len(chosen) - 1) < self.layers for chosen in alone)

    def _paid(self, flow: float, alone: Sequence[int], shared: int) -> float:
        """Layers that are paid for at the best prices found; `self.layers` or more: these exclude nothing.

        Only nodes of the partitions `alone` take a layer alone, and at least `shared` layers are shared.
        """
        rates = np.array([own[1][k - 1] for own, k in self.parts])
        units = np.where(rates >= flow, UNITS, np.clip(np.ceil(rates / flow * UNITS), 1, UNITS - 1)).astype(int)
        p = Program()
        worth = {own: p.variable("", float(n), 0, INFINITY) for own, n in self.nodes.items()}
        least = [float(n == UNITS and own[0] in alone) for (own, _), n in zip(self.parts, units, strict=True)]
        price = [p.variable("", 0.0, one, INFINITY) for one in least]
        more = p.variable("", -float(shared), 0, float(self.layers))  # what a shared layer costs beyond one
        for (own, k), variable in zip(self.parts, price, strict=True):
            p.row("", {worth[own]: 1.0, variable: -float(k)}, low=0)
        new = {w for w in self.ways if sum(units[i] * n for i, n in w) >= UNITS}
        while True:
            for way in new:
                p.row("", {**{price[i]: float(n) for i, n in way}, more: -1.0}, low=1)
            answer, _ = relax(p)
            assert answer.values is not None
            values = np.array(answer.values)
            if answer.objective >= self.layers - SLACK:
                return float(self.layers)
            new = set(_cheaper(values[price], units, 1 + float(values[more]) - SLACK))
            if not new:
                return answer.objective
            self.ways |= new


def _cheaper(price: NDArray[np.float64], units: NDArray[np.int64], than: float) -> Iterator[Way]:
    """For each part the cheapest way that two nodes or more with it share a layer, where it costs less than `than`."""
    cost, last = np.zeros(UNITS + 1), np.zeros(UNITS + 1, int)
    for at in range(1, UNITS + 1):
        each = cost[np.maximum(0, at - units)] + price
        last[at] = each.argmin()
        cost[at] = each[last[at]]
    for first, own in enumerate(price):
        left = max(1, UNITS - int(units[first]))
        if own + cost[left] < than:
            way = Counter({first: 1})
            while left > 0:
                way[int(last[left])] += 1
                left = max(0, left - int(units[last[left]]))
            yield tuple(sorted(way.items()))
