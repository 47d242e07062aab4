"""Helix's own instances (its published artefact, Apache-2.0) under our pattern model, in their units: tokens/s.

    python bench/placement.py --only placement --helix FOLDER      a git clone of Thesys-lab/Helix-ASPLOS25

A program in its folders states each node's rate by layers held, and each link's; the solution beside it has the
throughput that Helix found. We read both and run nothing of it. Our patterns here: one pipeline whose stages are one
to four nodes of a partition that hold the same layers; between partitions every pair of nodes is a link of its own.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, permutations, product
from pathlib import Path

import highspy
from placing.bound import bound

from katsura.placement.highs import Program, solve
from katsura.placement.problem import Effort

FOLDERS = {
    "10 nodes": "artifact_evaluation/ablation/layouts/quality",
    "24 nodes, one cluster": "artifact_evaluation/model_placement/layout_single/ilp",
    "24 nodes, three clusters": "artifact_evaluation/distributed_clusters/layout_llama70b/ilp",
    "42 nodes": "artifact_evaluation/high_heterogeneity/layout_llama70b/ilp",
}
UNPRUNED = {
    "24 nodes, three clusters": "artifact_evaluation/ablation/layouts/no_prune_24",
    "42 nodes": "artifact_evaluation/ablation/layouts/no_prune_42",
}
"""The same clusters with all of their links, which Helix's search leaves out in part."""
TOGETHER = 4
"""Most nodes of one stage."""


@dataclass(frozen=True)
class Instance:
    """A model of `layers` layers on nodes in partitions.

    Attributes:
        rates: by node, tokens/s with 1, 2, ... layers. partition: of each node.
        slow: the slowest link between partitions that Helix's search kept, tokens/s; fast: the slowest within one.
        found: Helix's throughput. crossing: the fastest of all links between partitions.
    """

    layers: int
    rates: tuple[tuple[float, ...], ...]
    partition: tuple[int, ...]
    slow: float
    fast: float
    found: float
    crossing: float = float("inf")

    @cached_property
    def bound(self) -> float:
        """No placement of layers, of whatever form, lets more through."""
        return bound(self.layers, self.rates, self.partition, self.crossing)


def read(text: str, solution: str, whole: str | None = None) -> Instance:
    """An instance from Gurobi's LP text of Helix's program and its solution; `whole`: the program with all links."""
    rows = text.replace("\n  ", " ")
    rates: dict[int, dict[int, float]] = defaultdict(dict)
    for row in re.findall(r"node_throughput_constraint_\d+: (.*)", rows):
        for rate, node, held in re.findall(r"- ([\d.e+]+) hold_(\d+)_(\d+)", row):
            rates[int(node)][int(held)] = float(rate)
    layers = max(int(n) for n in re.findall(r"end_constraint_\d+: .* <= (\d+)", rows))
    links = _links(rows)
    found = re.search(r"# Objective value = ([\d.e+]+)", solution)
    assert found is not None
    partition = _partitions(sorted(rates), links)
    across = [v for (a, b), v in links.items() if partition[a] != partition[b]]
    every = _links(whole.replace("\n  ", " ")) if whole is not None else links
    within = [v for (a, b), v in links.items() if partition[a] == partition[b]]
    return Instance(
        layers,
        tuple(tuple(rates[n][k] for k in sorted(rates[n])) for n in sorted(rates)),
        partition,
        min(across, default=float("inf")),
        min(within),
        float(found[1]),
        max((v for (a, b), v in every.items() if partition[a] != partition[b]), default=float("inf")),
    )


def _links(rows: str) -> dict[tuple[int, int], float]:
    found = re.findall(r"edge_flow_constr_\d+_\d+: .*?- ([\d.e+]+) switch_(\d+)_(\d+)", rows)
    return {(int(first), int(second)): float(rate) for rate, first, second in found}


def _partitions(nodes: Sequence[int], links: Mapping[tuple[int, int], float]) -> tuple[int, ...]:
    """Nodes that fast links join: a tenth of the fastest link between two nodes is fast."""
    fast = max(links.values()) / 10
    number = {n: n for n in nodes}
    for (a, b), rate in links.items():
        if rate > fast and number[a] != number[b]:
            old, new = number[a], number[b]
            number = {n: new if at == old else at for n, at in number.items()}
    names = sorted(set(number.values()))
    return tuple(names.index(number[n]) for n in nodes)


@dataclass(frozen=True)
class Group:
    """Some nodes of a partition, by kind, that hold the same layers. `even`: each can take an equal part of T."""

    partition: int
    kinds: tuple[tuple[float, ...], ...]
    layers: int
    even: bool


def groups(instance: Instance, rate: float) -> Iterator[Group]:
    """Every group that lets `rate` through, with the most layers that it can hold."""
    for partition in sorted(set(instance.partition)):
        mine = Counter(r for r, p in zip(instance.rates, instance.partition, strict=True) if p == partition)
        for many in range(1, TOGETHER + 1):
            for kinds in combinations_with_replacement(sorted(mine), many):
                if any(n > mine[kind] for kind, n in Counter(kinds).items()):
                    continue
                able = [k for k in range(1, min(map(len, kinds)) + 1) if sum(r[k - 1] for r in kinds) >= rate]
                if able:
                    even = min(r[able[-1] - 1] for r in kinds) >= rate / many
                    yield Group(partition, kinds, able[-1], even)


def pipeline(instance: Instance, rate: float) -> list[Group] | None:
    """Groups that follow each other and hold all layers at `rate`, one partition after the other; None: there is none.

    A link between two groups of a and b nodes in different partitions is a * b of its links.
    """
    if rate > instance.fast:
        return None
    found = list(groups(instance, rate))
    needed = -(-rate // instance.slow) if instance.slow < float("inf") else 1
    pairs = [(a, b) for a in range(1, TOGETHER + 1) for b in range(1, TOGETHER + 1) if a * b >= needed]
    pairs = [(a, b) for a, b in pairs if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in pairs)]
    for order in permutations(sorted(set(instance.partition))):
        if order[0] > order[-1]:
            continue  # backwards is the same
        for crossings in product(pairs, repeat=len(order) - 1):
            first = dict(zip(order[1:], (b for _, b in crossings), strict=True))
            last = dict(zip(order[:-1], (a for a, _ in crossings), strict=True))
            chosen = _most_layers(instance, found, [[e[p] for e in (first, last) if p in e] for p in sorted(order)])
            if sum(g.layers for g in chosen) >= instance.layers:
                return [g for p in order for g in _ordered(chosen, p, first.get(p, 1), last.get(p, 1))]
    return None


def _ordered(chosen: Sequence[Group], partition: int, first: int, last: int) -> list[Group]:
    """Groups of one partition, with one of at least `first` nodes in front and of `last` at the end."""
    left = sorted((g for g in chosen if g.partition == partition), key=lambda g: (not g.even, len(g.kinds)))
    ends: dict[str, Group] = {}
    for name, least in sorted((("front", first), ("end", last)), key=lambda e: -e[1]):
        wide = next((g for g in left if g.even and len(g.kinds) >= least), None) if least > 1 else None
        if wide is not None:
            left.remove(wide)
            ends[name] = wide
    return [*([ends["front"]] if "front" in ends else []), *left, *([ends["end"]] if "end" in ends else [])]


def _most_layers(instance: Instance, found: Sequence[Group], ends: Sequence[Sequence[int]]) -> list[Group]:
    """Groups of the nodes that hold most layers, by partition with groups of at least so many nodes at its ends."""
    p = Program()
    x = [p.variable("", -g.layers, 0, len(instance.rates), True) for g in found]
    have = Counter(zip(instance.partition, instance.rates, strict=True))
    for (partition, kind), n in have.items():
        mine = {i: g.kinds.count(kind) for i, g in zip(x, found, strict=True) if g.partition == partition}
        p.row("", {i: float(v) for i, v in mine.items()}, high=n)
    for partition, least in enumerate(ends):
        for size in sorted({n for n in least if n > 1}):
            wide = [g.partition == partition and g.even and len(g.kinds) >= size for g in found]
            p.row("", {i: 1.0 for i, w in zip(x, wide, strict=True) if w}, low=sum(n >= size for n in least))
    values = solve(p, Effort(gap=0.0, seconds=5)).values
    return [] if values is None else [g for i, g in zip(x, found, strict=True) for _ in range(round(values[i]))]


def placed(instance: Instance, chosen: Sequence[Group]) -> dict[int, tuple[int, int]]:
    """First layer and layers of each node that is used; what is too much is taken from the longest groups."""
    held = [g.layers for g in chosen]
    while sum(held) > instance.layers:
        held[held.index(max(held))] -= 1
    free = list(range(len(instance.rates)))
    made, at = {}, 0
    for g, many in zip(chosen, held, strict=True):
        for kind in g.kinds:
            own = (g.partition, kind)
            node = next(n for n in free if (instance.partition[n], instance.rates[n]) == own)
            free.remove(node)
            made[node] = (at, many)
        at += many
    return made


def flow(text: str, instance: Instance, nodes: Mapping[int, tuple[int, int]]) -> float:
    """What Helix's own program lets through where its nodes hold what `nodes` says: a check by their own words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "program.lp")
        path.write_text(text)
        model = highspy.Highs()
        model.setOptionValue("output_flag", False)
        model.readModel(str(path))
    index = {name: i for i, name in enumerate(model.getLp().col_names_)}
    for node, rates in enumerate(instance.rates):
        start, held = nodes.get(node, (0, 1))
        model.changeColBounds(index[f"start_{node}"], start, start)
        for k in range(1, len(rates) + 1):
            model.changeColBounds(index[f"hold_{node}_{k}"], float(k == held), float(k == held))
    model.setOptionValue("time_limit", 60.0)
    model.run()
    value: float = model.getInfo().objective_function_value
    return value


def best(instance: Instance) -> float:
    """The largest rate with a `pipeline`, of those at which some group's layers change."""
    kinds = sorted(set(instance.rates))
    told = {sum(many) for n in range(1, TOGETHER + 1) for r in kinds for many in ([rate] * n for rate in r)}
    told |= {a + b for one in kinds for two in kinds for a, b in zip(one, two, strict=False)}
    told |= {n * instance.slow for n in range(1, TOGETHER**2 + 1) if instance.slow < float("inf")}
    rates = sorted(t for t in told if t <= instance.bound + 1e-6)
    low, high = 0, len(rates)
    while low < high:
        middle = (low + high) // 2
        if pipeline(instance, rates[middle]) is not None:
            low = middle + 1
        else:
            high = middle
    return rates[low - 1] if low else 0.0


@dataclass(frozen=True)
class Result:
    """Our rate, what their program lets through on our placement, the bound, and the seconds of the search."""

    ours: float
    checked: float
    bound: float
    seconds: float


def result(folder: Path, name: str) -> tuple[Instance, Result]:
    """One of `FOLDERS` in a clone of the artefact (a bare one too)."""
    text, solution = (_show(folder, f"{FOLDERS[name]}/{file}") for file in ("ilp_model.lp", "ilp_solution.sol"))
    whole = _show(folder, f"{UNPRUNED[name]}/ilp_model.lp") if name in UNPRUNED else text
    instance = read(text, solution, whole)
    began = time.perf_counter()
    ours, most = best(instance), instance.bound
    seconds = time.perf_counter() - began
    chosen = pipeline(instance, ours)
    checked = flow(whole, instance, placed(instance, chosen)) if chosen else 0.0
    return instance, Result(ours, checked, most, seconds)


def _show(folder: Path, path: str) -> str:
    command = ["git", "-C", str(folder), "show", f"HEAD:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
