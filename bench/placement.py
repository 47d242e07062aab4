"""How well the planner predicts and how well it places. `--quick` takes about a minute; `--setup` gets the data.

Prediction: the measured serving points inside the PyPI package aiconfigurator-core (Apache-2.0). They are split before
the first fit: rows whose source is the pledged dump are never fitted on, of the rest a fifth (by a hash of the row's
id) is held out. Placement: made-up clusters (synthetic), against greedy, fastest-first and a type-per-model program in
the manner of Melange (re-implemented here). AIConfigurator itself is not run by this script and reported as missing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import re
import statistics
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from katsura.placement import calibration, catalogue
from katsura.placement.card import ModelCard, read_card
from katsura.placement.cost import Coefficients, ErrorClass, Layout, Load, Precision, decode_terms, prefill_floor_s
from katsura.placement.fit import Point, fit, fit_first
from katsura.placement.greedy import greedy, share_cost
from katsura.placement.highs import Program, solve
from katsura.placement.patterns import Column, enumerate_patterns
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, NodeClass, Problem
from katsura.testing.clusters import synthetic_problem

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench" / "aiconfigurator-core"
VERSION = "0.12.0"
PLEDGED = "db-dump/2026-04-27"
SYSTEMS = {
    "b200_sxm": ("B200", 8),
    "h100_sxm": ("H100", 8),
    "h200_sxm": ("H200", 8),
    "b300_sxm": ("B300", 8),
    "gb200": ("GB200", 72),
    "gb300": ("GB300", 72),
}
CONFIGS = {
    "deepseek-ai/DeepSeek-V3": "deepseek-ai--DeepSeek-R1",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai--DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai--DeepSeek-R1",
    "zhipuai/GLM-5": "zai-org--GLM-5",
    "meta-llama/Llama-3.1-70B": "meta-llama--Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama--Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama--Meta-Llama-3.1-8B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen--Qwen3-32B",
}
GPU_PRIOR = Coefficients()


@dataclass(frozen=True)
class Row:
    id: str
    model: str
    system: str
    backend: str
    precision: str
    mode: str
    load: Load
    batch: float
    devices: int
    ttft_s: float
    point: Point
    prefill_floor_s: float
    workers_known: bool
    pledged: bool
    held: bool


def read_rows(folder: Path) -> list[Row]:
    cards: dict[str, tuple[ModelCard, int]] = {}
    with (folder / "systems" / "silicon_sample.csv").open() as file:
        return [row_of(entry, folder, cards) for entry in csv.DictReader(file)]


def card_of(model: str, folder: Path, cards: dict[str, tuple[ModelCard, int]]) -> tuple[ModelCard, int]:
    if model not in cards:
        name = CONFIGS.get(model, model.replace("/", "--"))
        config = json.loads((folder / "model_configs" / f"{name}_config.json").read_text())
        text = config.get("text_config", config)
        cards[model] = read_card(config, model), text["num_attention_heads"]
    return cards[model]


def precision_of(entry: dict[str, str]) -> Precision:
    gemm, moe = entry["gemm_quant_mode"], entry["moe_quant_mode"]
    if entry["model_path"] == "openai/gpt-oss-120b":  # published in mxfp4 experts and bf16 everything else
        arithmetic = "bf16" if entry["system"] in ("h100_sxm", "h200_sxm") else "fp4"
        return Precision(0.53, 2, 1, arithmetic)
    size = {"fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625, "int4_wo": 0.53, "": 2.0}
    arithmetic = {"nvfp4": "fp4", "": "bf16", "int4_wo": "bf16"}.get(moe, "fp8")
    return Precision(size[moe], size[gemm], 1 if arithmetic in ("fp8", "fp4") else 2, arithmetic)


def row_of(entry: dict[str, str], folder: Path, cards: dict[str, tuple[ModelCard, int]]) -> Row:
    card, heads = card_of(entry["model_path"], folder, cards)
    device_name, per_node = SYSTEMS[entry["system"]]
    device = catalogue.built_in().named(device_name)
    side = "decode_" if entry["mode"] == "disagg" else ""

    def count(key: str) -> int:
        return int(float(entry[side + key] or 1)) or 1

    tensor, data, experts = count("tp_size"), count("attention_dp_size"), count("moe_ep_size")
    if heads % tensor:  # heads cannot be cut that way: those ranks must be copies of attention
        tensor, data = 1, tensor * data
    said = re.search(r"concurrency=(\d+)", entry["silicon_data_source"])
    batch = float(said[1]) if said else float(count("batch_size") * data)
    if side:
        batch /= max(1, int(float(entry["decode_num_workers"] or 1)))
    load, precision = Load(int(entry["isl"]), int(entry["osl"])), precision_of(entry)
    layout = Layout(tensor, data, experts, per_node)
    terms = decode_terms(card, device, precision, layout, batch, load)
    if side:
        terms = replace(terms, prefill=0.0)
    return Row(
        id=entry["id"],
        model=f"{card.family}-{card.layers}",
        system=entry["system"],
        backend=entry["backend"],
        precision=entry["precision"],
        mode=entry["mode"],
        load=load,
        batch=batch,
        devices=layout.devices,
        ttft_s=float(entry["silicon_ttft_ms"]) / 1e3,
        point=Point(terms, precision, float(entry["silicon_tpot_ms"]) / 1e3, batch, load.context),
        prefill_floor_s=prefill_floor_s(card, device, precision, layout, load),
        workers_known=bool(entry["decode_num_workers"]),
        pledged=entry["silicon_data_source"].startswith(PLEDGED),
        held=int(hashlib.sha256(entry["id"].encode()).hexdigest(), 16) % 5 == 0,
    )


def train(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.mode == "agg" and not r.pledged and not r.held]


def learn(rows: Sequence[Row]) -> Coefficients:
    c = fit([r.point for r in rows], GPU_PRIOR, ErrorClass.CALIBRATED, "2026-04")
    first = fit_first([(r.prefill_floor_s, predict(c, r), r.batch, r.ttft_s) for r in rows], GPU_PRIOR)
    return replace(c, first=first)


def predict(c: Coefficients, r: Row) -> float:
    return c.step_s(r.point.terms, r.point.precision)


def errors(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    apes = [abs(predicted / measured - 1) for predicted, measured in pairs]
    return {
        "rows": len(apes),
        "median": statistics.median(apes),
        "mape": statistics.fmean(apes),
        "spearman": spearman(pairs),
    }


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    def ranks(values: Sequence[float]) -> list[float]:
        order = sorted(range(len(values)), key=values.__getitem__)
        result = [0.0] * len(values)
        for rank, i in enumerate(order):
            result[i] = rank
        return result

    return statistics.correlation(ranks([p for p, _ in pairs]), ranks([m for _, m in pairs])) if len(pairs) > 2 else 1.0


def leave_out(rows: Sequence[Row], key: Callable[[Row], str]) -> list[tuple[Row, float]]:
    """Every aggregated row, predicted by a fit that saw neither its group nor any held or pledged row."""
    agg, known = [r for r in rows if r.mode == "agg"], train(rows)
    predicted = []
    for group in sorted({key(r) for r in agg}):
        c = learn([r for r in known if key(r) != group])
        predicted += [(r, predict(c, r)) for r in agg if key(r) == group]
    return predicted


def few_shot(by_model: Sequence[tuple[Row, float]], shots: int = 5) -> tuple[list[tuple[Row, float]], set[str], float]:
    """Leave-one-model-out predictions times a factor per (model, system, backend, precision) from `shots` of its rows.

    Returns the rows of groups that have so many with their predictions, the ids of the rows that set a factor, and the
    factor over the prediction below which nine of ten of those lay.
    """
    groups: dict[tuple[str, ...], list[tuple[Row, float]]] = defaultdict(list)
    for r, p in by_model:
        groups[r.model, r.system, r.backend, r.precision].append((r, p))
    made, taken, spread = [], set(), []
    for members in groups.values():
        ordered = sorted(members, key=lambda m: hashlib.sha256(m[0].id.encode()).hexdigest())
        seen = [m for m in ordered if not m[0].pledged and not m[0].held][:shots]
        if len(seen) < shots:
            continue
        factor = math.exp(statistics.median(math.log(r.point.seconds / p) for r, p in seen))
        taken |= {r.id for r, _ in seen}
        spread += [r.point.seconds / (p * factor) for r, p in seen]
        made += [(r, p * factor) for r, p in members]
    return made, taken, sorted(spread)[int(0.9 * len(spread))]


def choices(predicted: Sequence[tuple[Row, float]], margin: float) -> tuple[float, float, int]:
    """Pick by prediction, score by measurement: part of choices that keep the SLO (5 % grace), mean of throughput per
    device against the best measured choice, and how many decisions there were."""
    groups: dict[tuple[Any, ...], list[tuple[Row, float]]] = defaultdict(list)
    for r, p in predicted:
        groups[r.model, r.system, r.backend, r.precision, r.load.prompt, r.load.output].append((r, p))
    kept, ratios = 0, []
    for members in groups.values():
        for slo in (0.020, 0.030, 0.050):
            good = [r for r, _ in members if r.point.seconds <= slo]
            if len({(r.devices, r.batch) for r, _ in members}) < 3 or not good or len(good) == len(members):
                continue
            best = max(r.batch / r.point.seconds / r.devices for r in good)
            allowed = [(r, p) for r, p in members if p * margin <= slo] or [min(members, key=lambda m: m[1])]
            chosen = max(allowed, key=lambda m: m[0].batch / m[1] / m[0].devices)[0]
            if chosen.point.seconds <= slo * 1.05:
                kept += 1
                ratios.append(chosen.batch / chosen.point.seconds / chosen.devices / best)
            else:
                ratios.append(0.0)
    return kept / len(ratios), statistics.fmean(ratios), len(ratios)


def ttft(rows: Sequence[Row], c: Coefficients) -> list[tuple[float, float]]:
    """The load generators keep a fixed number of requests open, so nobody waits for a place in the batch."""
    return [(c.first_s(r.prefill_floor_s, predict(c, r), r.batch), r.ttft_s) for r in rows]


def prediction(rows: Sequence[Row], out: list[dict[str, Any]]) -> None:
    by_model = leave_out(rows, lambda r: r.model)
    parts: list[tuple[str, Callable[[Row], bool]]] = [
        ("all", lambda r: True),
        ("not seen by any fit: held", lambda r: r.held and not r.pledged),
        ("not seen by any fit: pledged", lambda r: r.pledged),
    ]
    for name, wanted in parts:
        found = errors([(p, r.point.seconds) for r, p in by_model if wanted(r)])
        report(out, f"TPOT, leave one model out, {name}", found, 0.18)
    for key, what in ((lambda r: r.system, "system"), (lambda r: r.backend, "backend")):
        found = errors([(p, r.point.seconds) for r, p in leave_out(rows, key)])
        report(out, f"TPOT, leave one {what} out, all", found, None)
    known, taken, spread = few_shot(by_model)
    fresh = [(p, r.point.seconds) for r, p in known if r.id not in taken]
    report(out, "TPOT, five points of each group known", errors(fresh), 0.12)
    c = learn(train(rows))
    apart = [r for r in rows if r.mode == "disagg"]
    for known_workers, what in ((True, "that say how many decode workers"), (False, "that do not say it")):
        mine = [(predict(c, r), r.point.seconds) for r in apart if r.workers_known is known_workers]
        report(out, f"TPOT, disaggregated rows {what}", errors(mine), None)
    unseen = [r for r in rows if r.mode == "agg" and (r.held or r.pledged)]
    report(out, "TTFT, held and pledged rows", errors(ttft(unseen, c)), None)
    for predicted, margin, label in (
        (by_model, 1.0, "model unseen, median"),
        (by_model, c.quantile_90, "model unseen, 90 % margin"),
        (known, spread, "five points known, 90 % margin"),
    ):
        kept, share, number = choices(predicted, margin)
        add(out, f"SLO kept by the chosen configuration ({label}, {number} decisions)", kept, "share", 0.95, True)
        add(out, f"throughput of the choice against the best measured ({label})", share, "share", 0.95, True)
    out.append(missing("TPOT on the rows that AIConfigurator answers", "AIConfigurator", "not run by this script"))


def report(out: list[dict[str, Any]], name: str, found: dict[str, float], goal: float | None) -> None:
    print(
        f"{name:62} n={found['rows']:5.0f}  median {found['median']:6.1%}  MAPE {found['mape']:6.1%}  "
        f"Spearman {found['spearman']:.3f}"
    )
    add(out, name, found["median"], "median absolute error", goal, False, quiet=True)


def add(
    out: list[dict[str, Any]],
    name: str,
    ours: float,
    unit: str,
    goal: float | None,
    more_is_better: bool,
    peer: float | None = None,
    peer_name: str = "",
    quiet: bool = False,
) -> None:
    holds = None if goal is None else (ours >= goal if more_is_better else ours <= goal)
    ratio = None if peer is None or not ours else (ours / peer if more_is_better else peer / ours)
    if not quiet:
        against = f"  {peer_name} {peer:.4g}" if peer is not None else ""
        verdict = "" if holds is None else ("  holds" if holds else f"  DOES NOT HOLD (goal {goal:g})")
        print(f"{name:62} {ours:.4g} {unit}{against}{verdict}")
    out.append(
        {
            "name": name,
            "ours": ours,
            "peer": peer,
            "peer_name": peer_name,
            "unit": unit,
            "ratio": ratio,
            "goal": goal,
            "holds": holds,
        }
    )


def missing(name: str, peer: str, why: str) -> dict[str, Any]:
    print(f"{name:62} {peer}: missing ({why})")
    empty = dict.fromkeys(("ours", "peer", "unit", "ratio", "goal", "holds"))
    return {"name": name, **empty, "peer_name": f"{peer}: missing ({why})"}


def cost_of(problem: Problem, columns: Sequence[Column], counts: Sequence[int]) -> tuple[float, float]:
    """Dollars per hour of the opened nodes, and the smallest part of any demand that is served."""
    use: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    served: dict[str, float] = defaultdict(float)
    for column, n in zip(columns, counts, strict=True):
        served[column.service] += n * column.requests_s
        for m in column.members:
            for k, amount in enumerate((m.accelerators, m.cores, m.ram_bytes)):
                use[m.node_class][k] += n * m.count * amount
    usd = 0.0
    for c in problem.classes:
        have = (c.accelerators, c.cores, c.ram_bytes)
        usd += c.hourly_usd * max(math.ceil(u / h - 1e-9) if h else 0 for u, h in zip(use[c.name], have, strict=True))
    return usd, min((served[s.name] / s.requests_s for s in problem.services if s.requests_s), default=1.0)


def melange(problem: Problem, columns: Sequence[Column]) -> list[int]:
    """Types per model by accelerator price, as many as are wanted: no node shapes, no inventory (then cut to it)."""
    classes: dict[str, NodeClass] = {c.name: c for c in problem.classes}
    p = Program()
    z = [p.variable("", share_cost(problem, classes, c) * c.requests_s, 0, 4096, True) for c in columns]
    for s in problem.services:
        p.row("", {z[i]: c.requests_s / s.requests_s for i, c in enumerate(columns) if c.service == s.name}, low=1)
    wanted = solve(p, Effort(gap=0.001, seconds=10)).values or (0.0,) * len(columns)
    rank = {id(c): -w for c, w in zip(columns, wanted, strict=True)}
    return greedy(problem, columns, lambda c: rank[id(c)] * 1e6 + share_cost(problem, classes, c))


def fastest_first(problem: Problem, columns: Sequence[Column]) -> list[int]:
    strength = {c.name: c.device.memory_gb_s if c.device else 0.0 for c in problem.classes}
    return greedy(problem, columns, lambda c: -strength[c.members[0].node_class])


def placement(sizes: Sequence[tuple[int, int, float, float]], seeds: int, out: list[dict[str, Any]]) -> None:
    for nodes, services, seconds, goal in sizes:
        for seed in range(1, seeds + 1):
            problem = synthetic_problem(nodes, services, seed)
            began, cpu = time.perf_counter(), time.process_time()
            made = plan(problem, Effort(gap=goal / 2, seconds=seconds), explain=False)
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            label = f"synthetic, {nodes} nodes, {services} models, seed {seed}"
            add(out, f"gap, {label} ({wall:.0f} s wall, {cpu:.0f} s CPU)", made.gap, "of the cost", goal, False)
            columns = enumerate_patterns(problem).columns(problem.classes)
            for name, rival in (("greedy", greedy), ("fastest first", fastest_first), ("Melange's program", melange)):
                usd, served = cost_of(problem, columns, rival(problem, columns))
                said = name if served > 0.999 else f"{name} (serves {served:.0%})"
                add(out, f"dollars per hour, {label}", made.hourly_usd, "$/h", None, False, usd, said)


def write_coefficients(rows: Sequence[Row]) -> None:
    path = Path(calibration.__file__).with_name("coefficients.json")
    data = json.loads(path.read_text())
    known = train(rows)
    data["kinds"]["gpu"] = calibration.coefficients_as_json(learn(known))
    data["devices"] = {}
    for system, (device, _) in SYSTEMS.items():
        mine = [r for r in known if r.system == system]
        if len(mine) >= 300:
            data["devices"][device] = calibration.coefficients_as_json(learn(mine))
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {path}")


def setup() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(HOME)]
    subprocess.run([*command, f"aiconfigurator-core=={VERSION}"], check=True)
    wheel = next(HOME.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        wanted = [n for n in archive.namelist() if n.endswith(("silicon_sample.csv", "_config.json"))]
        archive.extractall(HOME, wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, up to 100 nodes")
    parser.add_argument("--setup", action="store_true", help="get the measured points (82 MB, once)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--write-coefficients", action="store_true", help="fit on the training rows and store")
    arguments = parser.parse_args()
    if arguments.setup:
        setup()
    out: list[dict[str, Any]] = []
    folder = HOME / "aiconfigurator_core"
    if (folder / "systems" / "silicon_sample.csv").exists():
        rows = read_rows(folder)
        if arguments.write_coefficients:
            write_coefficients(rows)
        prediction(rows, out)
    else:
        out.append(missing("prediction", "aiconfigurator-core's measured points", "run with --setup"))
    sizes = [(100, 12, 10.0, 0.02)]
    if not arguments.quick:
        sizes += [(1000, 24, 60.0, 0.01), (5000, 24, 120.0, 0.05)]
    placement(sizes, 1 if arguments.quick else 3, out)
    if arguments.json:
        arguments.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
