"""What `bench/placement.py` compares with: read rightly, and no weaker than it was published."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from katsura.placement import calibration, catalogue
from katsura.placement.cost import BF16, Layout, Load, decode_terms
from katsura.placement.fit import Point
from katsura.placement.greedy import share_cost
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.problem import UNIFIED
from katsura.testing.clusters import cards, model_service, node_class, problem_of


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import placing.artefact
    import placing.bound
    import placing.helix
    import placing.mates
    import placing.neighbours
    import placing.points
    import placing.rivals

    return placing


@pytest.mark.parametrize(
    ("row_id", "sizes", "expected"),
    [
        ("r1_b200_agg_c64_tp8_ep8_920", (64, 1, 8, 8), Layout(8, 1, 8)),  # tensor times expert parallelism
        ("r1_b200_agg_c64_tp8_ep8_937", (1, 64, 8, 8), Layout(1, 8, 8)),
        ("k2_b200_agg_c64_tp4_ep4_12", (4, 4, 1, 16), Layout(4, 1, 4)),
        ("r1_b200_agg_c64_tp8_0_ep8_0_3", (8, 1, 1, 8), Layout(8, 1, 8)),  # right as it is
        ("r1_b200_agg_c64_cfg88", (16, 1, 4, 4), Layout(4, 1, 4)),  # no such words in its id: the dump
        ("m2_b200_agg_c64_cfg633", (2, 1, 2, 1), Layout(2, 1, 1)),
    ],
)
def test_layouts_are_read_as_they_ran(
    bench: ModuleType, row_id: str, sizes: tuple[int, int, int, int], expected: Layout
) -> None:
    names = ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    source = bench.points.PLEDGED if "cfg" in row_id else "source_file=2026-04-06.csv"
    entry = {"id": row_id, "silicon_data_source": source, **dict(zip(names, map(str, sizes), strict=True))}
    assert bench.points.layout_of(entry, "", 128, 8) == expected


def test_helix_finds_the_best_placement_of_layers(bench: ModuleType) -> None:
    """Three nodes of two layers each and a model of three: the best of all placements, by trying every one."""
    stage = bench.helix.Stage
    stages = [stage("a", (90.0, 50.0), 1e9), stage("b", (60.0, 40.0), 1e9), stage("c", (30.0, 20.0), 1e9)]
    helix = bench.helix.Helix(stages, 3)
    best = 0.0
    for order in itertools.permutations(range(3)):
        for held in itertools.product((1, 2), repeat=3):
            for many in (2, 3):
                if sum(held[:many]) == 3:
                    rates = [stages[i].rates[k - 1] for i, k in zip(order[:many], held, strict=False)]
                    best = max(best, min(rates))
    first_guess = -sum(c * v for c, v in zip(helix.p.cost, helix.pipelines(), strict=True)) * helix.unit
    found = -helix.solve(60.0).objective * helix.unit
    assert first_guess <= best <= found + 1e-6
    assert found == pytest.approx(60.0)  # no single pipeline: a feeds both b and c, which hold the other two layers


def test_a_node_holds_no_more_weights_than_half_of_its_memory(bench: ModuleType) -> None:
    service = model_service("m", cards()[1], 1.0, itl_ms=None)
    device = catalogue.built_in().named("A100-40")
    stage = bench.helix.stage_of("n", device, 1, service)
    assert 0 < len(stage.rates) < cards()[1].layers
    assert list(stage.rates) == sorted(stage.rates, reverse=True)
    assert calibration.built_in().of(device).rows


def test_melange_buys_what_serves_the_demand_and_is_laid_over_what_is_there(bench: ModuleType) -> None:
    service = model_service("chat", cards()[0], 12.0, topologies=(UNIFIED,))
    problem = problem_of([service], [node_class("H100", 2), node_class("L40S", 2, domain="b")])
    columns = enumerate_patterns(problem).columns(problem.classes)
    classes = {c.name: c for c in problem.classes}
    cheapest = min(share_cost(problem, classes, c) for c in columns)
    counts = bench.rivals.melange(problem, columns)
    usd, served = bench.rivals.cost_of(problem, columns, counts)
    assert served >= 1
    assert usd >= cheapest * service.requests_s
    assert all(share_cost(problem, classes, c) == cheapest for c, n in zip(columns, counts, strict=True) if n)


PROGRAM = """\
Maximize
  flow_source_0 + flow_source_1
Subject To
 end_constraint_0: start_0 + hold_0_1 + 2 hold_0_2 <= 3
 end_constraint_1: start_1 + hold_1_1 + 2 hold_1_2 <= 3
 hold_constraint_0: hold_0_1 + hold_0_2 = 1
 hold_constraint_1: hold_1_1 + hold_1_2 = 1
 node_throughput_constraint_0: - 90 hold_0_1 - 50.5 hold_0_2 + flow_source_0
   + flow_1_0 <= 0
 node_throughput_constraint_1: - 60 hold_1_1 - 40 hold_1_2
   + flow_source_1 + flow_0_1 <= 0
 node_flow_constraint_0: flow_source_0 + flow_1_0 - flow_0_1 - flow_0_sink = 0
 node_flow_constraint_1: flow_source_1 + flow_0_1 - flow_1_0 - flow_1_sink = 0
 edge_flow_constr_0_1: flow_0_1 - 45 switch_0_1 <= 0
 edge_flow_constr_1_0: flow_1_0 - 1000 switch_1_0 <= 0
 edge_disable_constr_0_1: start_0 + hold_0_1 + 2 hold_0_2 - start_1 + 3 switch_0_1 <= 3
 edge_disable_constr_1_0: start_1 + hold_1_1 + 2 hold_1_2 - start_0 + 3 switch_1_0 <= 3
 source_0: start_0 + 3 switch_source_0 <= 3
 source_1: start_1 + 3 switch_source_1 <= 3
 open_0: flow_source_0 - 1000 switch_source_0 <= 0
 open_1: flow_source_1 - 1000 switch_source_1 <= 0
 sink_0: start_0 + hold_0_1 + 2 hold_0_2 - 3 switch_0_sink >= 0
 sink_1: start_1 + hold_1_1 + 2 hold_1_2 - 3 switch_1_sink >= 0
 close_0: flow_0_sink - 1000 switch_0_sink <= 0
 close_1: flow_1_sink - 1000 switch_1_sink <= 0
Binaries
 hold_0_1 hold_0_2 hold_1_1 hold_1_2 switch_0_1 switch_1_0 switch_source_0
 switch_source_1 switch_0_sink switch_1_sink
Generals
 start_0 start_1
End
"""


def test_an_instance_of_helix_is_read_and_our_placement_is_checked_by_its_own_program(bench: ModuleType) -> None:
    read = bench.artefact.read(PROGRAM, "# Objective value = 4.05e+01\n")
    assert read.layers == 3
    assert read.rates == ((90.0, 50.5), (60.0, 40.0))
    assert (read.found, read.partition, read.fast) == (40.5, (0, 0), 45.0)
    single = replace(read, partition=(0, 0), slow=float("inf"), fast=1000.0)
    ours = bench.artefact.best(single)
    assert ours == 50.5
    chosen = bench.artefact.pipeline(single, ours)
    nodes = bench.artefact.placed(single, chosen)
    assert sorted(held for _, held in nodes.values()) == [1, 2]
    wide = PROGRAM.replace("45 switch_0_1", "1000 switch_0_1")
    assert bench.artefact.flow(wide, single, nodes) == pytest.approx(ours)
    assert single.bound >= ours


def test_links_between_partitions_limit_a_pipeline_unless_wide_groups_meet_there(bench: ModuleType) -> None:
    fast, slow = (100.0, 60.0), (50.0, 30.0)
    apart = bench.artefact.Instance(3, (fast, slow, slow), (0, 1, 1), 30.0, 1000.0, 0.0)
    assert bench.artefact.best(apart) == 60.0  # two layers on the first; one on both others, over two links of 30
    assert bench.artefact.best(replace(apart, slow=20.0)) == 40.0
    assert bench.artefact.best(replace(apart, partition=(0, 0, 0), slow=float("inf"))) == 60.0


@pytest.mark.parametrize("seed", range(6))
def test_no_placement_lets_more_through_than_the_bound_says(bench: ModuleType, seed: int) -> None:
    """Made-up nodes whose optimum Helix's own program proves: within one partition, and each node in its own."""
    draw = random.Random(seed)
    layers, nodes = draw.choice((3, 4, 5)), 4
    rates = []
    for _ in range(nodes):
        first = draw.uniform(50, 100)
        rates.append(tuple(first / k ** draw.uniform(0.7, 1.3) for k in range(1, draw.choice((2, 3)) + 1)))
    for link, partition in ((1e9, [0] * nodes), (draw.uniform(10, 50), list(range(nodes)))):
        helix = bench.helix.Helix([bench.helix.Stage(str(i), r, link) for i, r in enumerate(rates)], layers)
        most = -helix.solve(60.0).bound * helix.unit
        best = -helix.solve(60.0).objective * helix.unit
        assert bench.bound.bound(layers, rates, partition, link) >= best - 1e-3
        assert most <= best * 1.02  # it was solved


def test_a_slow_link_makes_nodes_share_a_layer(bench: ModuleType) -> None:
    """Two nodes of one layer each: 90 tokens/s side by side, and over a link of 20 no more than that."""
    rates = [(90.0,), (90.0,)]
    assert bench.bound.bound(2, rates, (0, 0)) == pytest.approx(90.0, rel=1e-4)
    assert bench.bound.bound(2, rates, (0, 1), 100.0) == pytest.approx(90.0, rel=1e-4)
    assert bench.bound.bound(2, rates, (0, 1), 20.0) == pytest.approx(20.0, rel=1e-4)
    # One shared layer is enough to get across: four layers, over two links of 30 the fifth, and on.
    long = (100.0, 90.0, 80.0, 60.0)
    assert bench.bound.bound(8, [long, long, (100.0,)], (0, 1, 1), 30.0) == pytest.approx(60.0, rel=1e-4)
    assert bench.bound.bound(9, [long, long, (100.0,)], (0, 1, 1), 30.0) == pytest.approx(30.0, rel=1e-4)


def test_a_node_that_nearly_does_it_alone_needs_a_whole_one_beside_it(bench: ModuleType) -> None:
    """Of four layers 100 tokens/s: the first nodes do 99 of them alone, which is no 99 hundredths of a layer."""
    rates = [(200.0, 99.0), (200.0, 99.0), (60.0,)]
    assert bench.bound.bound(4, rates, (0, 0, 0)) == pytest.approx(99.0, rel=1e-4)


def test_a_measured_neighbour_tells_more_than_one_of_another_version(bench: ModuleType) -> None:
    card, device = cards()[0], catalogue.built_in().named("H100")
    fits = bench.prediction.Fits(bench.prediction.PRIOR, {})

    def row(batch: float, version: str = "1", slower: float = 1.5) -> Any:
        load, layout = Load(1000, 200), Layout()
        terms = decode_terms(card, device, BF16, layout, batch, load)
        seconds = slower * fits.every.step_s(terms)
        point = Point(terms, seconds, batch, load.context)
        names = ("m", "m", "h100_sxm", "vllm", version, "bf16", ("", ""), "agg", load, batch, layout, 1.0, point)
        return bench.points.Row(f"{batch}-{version}", *names, 0.1, 0.0, True, False, True, (str(batch), version))

    seen = [row(16), row(64), row(64, "2", 1.0)]
    told = bench.neighbours.tell(seen, [row(32), row(32, "2"), row(32, "3")], fits)
    near, other, unknown = (told[f"32-{version}"] for version in "123")
    assert near.seconds > 1.1 * other.seconds
    assert near.spread < unknown.spread
    alone = bench.neighbours.tell([], [row(32)], fits)["32-1"]
    assert alone.spread > near.spread
    made = bench.prediction.Decision((row(32), row(16)), near.seconds * 0.8, 1.0)
    ((pick, _),) = bench.neighbours.choose_warily([made], {**told, "16-1": replace(near, seconds=near.seconds / 2)})
    assert pick.batch == 16


def test_requests_of_one_batch_are_known_by_the_instants_of_their_tokens(bench: ModuleType) -> None:
    draw = random.Random(1)

    def drawn(first: float, step_s: float, count: int) -> list[float]:
        return [first + i * step_s + draw.uniform(0, 0.001) for i in range(count)]

    one, late, other = drawn(0.0, 0.06, 40), drawn(0.6, 0.06, 30), drawn(0.03, 0.071, 40)
    found = bench.mates.mates([one, other, late, drawn(5.0, 0.06, 4)])
    assert found[0] == found[2]
    assert len(set(found)) == 3
