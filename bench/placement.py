"""How well the planner predicts and how well it places. `--quick` takes about a minute; `--setup` gets the data.

Prediction: the measured serving points inside the PyPI package aiconfigurator-core (`placing/points.py` says how they
are split), beside AIConfigurator on a sample of them. Placement: made-up clusters (synthetic), against greedy,
fastest-first and the programs of Melange and Helix, re-implemented in `placing/` and priced by our cost model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from placing import aiconfigurator, artefact
from placing.helix import Helix, stage_of
from placing.neighbours import NOISE, choose_warily, tell
from placing.points import SYSTEMS, Row, read_rows, train, twins
from placing.prediction import (
    TENTH,
    Fits,
    Shots,
    by_another_version,
    choose,
    choose_by_chance,
    choose_by_running,
    choose_by_table,
    choose_with_error,
    decisions,
    errors,
    few_shot,
    learn,
    leave_out,
    left_out,
    repeated,
    summed,
    tabled,
)
from placing.replayed import plan_of, replayed
from placing.report import Report
from placing.rivals import cost_of, fastest_first, melange

from katsura.placement import calibration, catalogue
from katsura.placement.document import running
from katsura.placement.fit import Belief
from katsura.placement.greedy import greedy
from katsura.placement.patterns import Column, enumerate_patterns
from katsura.placement.plan import Plan
from katsura.placement.planner import Solution, plan, solve
from katsura.placement.problem import PIPELINE, SPLIT, UNIFIED, Effort, ModelService, Objective, Problem
from katsura.placement.replan import replan
from katsura.testing.clusters import cards, model_service, node_class, problem_of, synthetic_problem

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".bench" / "aiconfigurator-core"
REPLAY_S = 600.0
"""Simulated seconds of a trace."""
PEER = ROOT / ".bench" / "aiconfigurator"


def prediction(rows: Sequence[Row], asked: int, report: Report) -> None:
    published, agree = twins(rows)
    report.add(f"layouts that agree among {published} measurements published twice", agree / published, "share", 1.0)
    by_model, fits = leave_out(rows, lambda r: r.model)
    parts: list[tuple[str, Callable[[Row], bool], float | None]] = [
        ("all", lambda r: True, 0.18),
        ("not seen by any fit: held", lambda r: r.held and not r.pledged, None),
        ("not seen by any fit: pledged", lambda r: r.pledged, None),
    ]
    for name, wanted, goal in parts:
        found = errors([(p, r.point.seconds) for r, p in by_model if wanted(r)])
        report.errors(f"TPOT, leave one model out, {name}", found, goal)
    for key, what in ((lambda r: r.system, "system"), (lambda r: r.backend, "backend")):
        found = errors([(p, r.point.seconds) for r, p in leave_out(rows, key)[0]])
        report.errors(f"TPOT, leave one {what} out, all", found)
    known = few_shot(rows, fits)
    fresh = [(p, r.point.seconds) for r, p in known.median if r.measured not in known.shown]
    report.errors("TPOT, model unseen, five points of its group known", errors(fresh), 0.12)
    c = learn(train(rows))
    apart = [r for r in rows if r.mode == "disagg"]
    for known_workers, what in ((True, "that say how many decode workers"), (False, "that do not say it")):
        mine = [(c.step_s(r), r.point.seconds) for r in apart if r.workers_known is known_workers]
        report.errors(f"TPOT, disaggregated rows {what}", errors(mine))
    drawn = aiconfigurator.sample(rows, min(asked, aiconfigurator.SAMPLE_APART), "disagg")
    apart_beside_aiconfigurator(drawn, c, report)
    first = [(fits[r.model].first_s(r), r.ttft_s) for r, _ in by_model]
    report.errors("TTFT, leave one model out, all", errors(first))
    beside_aiconfigurator(aiconfigurator.sample(rows, asked), by_model, known, fits, report)
    choice(by_model, known.median, known.bound, fits, c.every.quantile_90, report)
    choice_by_rows(rows, report)
    others = by_another_version(train(rows), c)
    told = errors([(s, r.point.seconds) for r, s in others])
    report.errors("TPOT, training rows by a table of another version of the engine", told)
    alone = errors([(fits[r.model].step_s(r), r.point.seconds) for r, _ in others])
    report.errors("TPOT, the same rows by the cost model, model unseen", alone)


def beside_aiconfigurator(
    drawn: Sequence[Row],
    by_model: Sequence[tuple[Row, float]],
    known: Shots,
    fits: Mapping[str, Fits],
    report: Report,
) -> None:
    """AIConfigurator on a sample of the measurements: coverage beside error, and ours on the rows that it answers."""
    if not (PEER / "bin" / "aiconfigurator").exists():
        report.missing("TPOT on the rows that AIConfigurator answers", "AIConfigurator", "run with --setup")
        return
    answers = aiconfigurator.ask(drawn, PEER)
    alone, five = ({r.id: p for r, p in pairs} for pairs in (by_model, known.median))
    for hows, what in ((("measured",), "its measured mode"), (("measured", "hybrid"), "with its hybrid mode")):
        mine = [r for r in drawn if answers[r.id].get("how") in hows]
        share = len(mine) / len(drawn)
        report.add(f"coverage of {len(drawn)} measurements, {what}", 1.0, "share", 1.0, True, share, "AIConfigurator")
        theirs = errors([(answers[r.id]["tpot_s"], r.point.seconds) for r in mine])
        ours = errors([(alone[r.id], r.point.seconds) for r in mine])
        report.errors(f"TPOT where AIConfigurator answers, {what}; ours: model unseen", ours, None, theirs)
        both = [r for r in mine if r.id in five and r.measured not in known.shown]
        theirs = errors([(answers[r.id]["tpot_s"], r.point.seconds) for r in both])
        ours = errors([(five[r.id], r.point.seconds) for r in both])
        report.errors(f"TPOT where AIConfigurator answers, {what}; ours: five points known", ours, None, theirs)
        theirs = errors([(answers[r.id]["ttft_s"], r.ttft_s) for r in mine])
        ours = errors([(fits[r.model].first_s(r), r.ttft_s) for r in mine])
        report.errors(f"TTFT where AIConfigurator answers, {what}; ours: model unseen", ours, None, theirs)


def apart_beside_aiconfigurator(drawn: Sequence[Row], fits: Fits, report: Report) -> None:
    """Disaggregated rows: coverage beside error, decoding asked for by itself."""
    if not (PEER / "bin" / "aiconfigurator").exists():
        report.missing("TPOT, disaggregated rows", "AIConfigurator", "run with --setup")
        return
    answers = aiconfigurator.ask(drawn, PEER)
    for hows, what in ((("measured",), "its measured mode"), (("measured", "hybrid"), "with its hybrid mode")):
        mine = [r for r in drawn if answers[r.id].get("how") in hows]
        label = f"coverage of {len(drawn)} disaggregated rows, {what}"
        report.add(label, 1.0, "share", 1.0, True, len(mine) / len(drawn), "AIConfigurator")
        theirs = errors([(answers[r.id]["tpot_s"], r.point.seconds) for r in mine])
        ours = errors([(fits.step_s(r), r.point.seconds) for r in mine])
        report.errors(f"TPOT, disaggregated rows where AIConfigurator answers, {what}", ours, None, theirs)


def choice(
    by_model: Sequence[tuple[Row, float]],
    known: Sequence[tuple[Row, float]],
    bound: Sequence[tuple[Row, float]],
    fits: Mapping[str, Fits],
    quantile_90: float,
    report: Report,
) -> None:
    """What the plans are worth, what would be needed, and what a few runs add."""
    agg = [r for r, _ in by_model]
    every, of_known = decisions(agg), decisions(r for r, _ in known)
    alone = {r.id: p for r, p in by_model}
    five, five_bound = ({r.id: p for r, p in pairs} for pairs in (known, bound))

    def say(label: str, kept: float, share: float, judged: bool) -> None:
        goal = 0.95 if judged else None
        report.add(f"SLO kept by the choice: {label}", kept, "share", goal)
        report.add(f"throughput of the choice against the best: {label}", share, "share", goal)

    n = len(every)
    wary = {k: v * quantile_90 for k, v in alone.items()}
    say(f"model unseen, median ({n} decisions)", *choose(every, alone, alone), True)
    say("model unseen, 90 % bound", *choose(every, alone, wary), True)
    say(f"five points known, median ({len(of_known)} decisions)", *choose(of_known, five, five), True)
    say("five points known, 90 % bound", *choose(of_known, five, five_bound), True)
    for runs in (1, 2, 3, 4, 5):
        kept, share, used = choose_by_running(every, fits, runs)
        say(f"model unseen, best of <= {runs} runs it asked for (mean {used:.1f})", kept, share, True)
        say(f"best of {runs} runs drawn by lot", *choose_by_chance(every, runs), False)
    pledged = decisions(r for r in agg if r.pledged)
    kept, share, used = choose_by_running(pledged, fits, 4)
    say(f"pledged rows only ({len(pledged)} decisions), <= 4 runs (mean {used:.1f})", kept, share, True)
    say("hindsight: each configuration's median is known", *choose(every, repeated(agg), repeated(agg)), False)
    for spread in (0.05, 0.10, 0.15, 0.20):
        say(f"if errors had a spread of {spread:.0%}, median", *choose_with_error(every, spread, 0.0), False)
        say(f"if errors had a spread of {spread:.0%}, 90 % bound", *choose_with_error(every, spread, TENTH), False)


def choice_by_rows(rows: Sequence[Row], report: Report) -> None:
    """The split by rows: whoever chooses knows measurements of the same engine, model and device, not of these rows."""
    known = train(rows)
    shown = {r.measured for r in known}
    every = [r for r in rows if r.mode == "agg"]
    fresh = [r for r in every if (r.held or r.pledged) and r.measured not in shown]
    told = tell(known, fresh, learn(known))
    parts = {"held": [r for r in fresh if not r.pledged], "pledged": [r for r in fresh if r.pledged]}
    for name, mine in parts.items():
        report.errors(f"TPOT, {name} rows, others of their group known", errors([_pair(r, told) for r in mine]))
    table = {r.id: told.get(r.id) or Belief(r.point.seconds, NOISE) for r in every}
    made = {f"among {name} rows only": decisions(mine) for name, mine in parts.items()}
    made["among all rows, known ones as measured"] = decisions(every)
    for name, own in made.items():
        kept, share = summed([score for _, score in choose_warily(own, table)])
        label = f"{name}, the group's training rows known ({len(own)} decisions)"
        report.add(f"SLO kept by the choice: {label}", kept, "share", 0.95)
        report.add(f"throughput of the choice against the best: {label}", share, "share", 0.95)
    scores = [score for r, score in choose_warily(decisions(every), table) if r.id in told]
    kept, share = summed(scores)
    report.add(
        f"SLO kept by the choice: of these, those that picked an unseen row ({len(scores)})", kept, "share", 0.95
    )
    report.add("throughput of the choice against the best: of these, those that picked one", share, "share", 0.95)

    for name, mine in parts.items():
        by_table([(known, mine)], name, report)
    by_table(left_out(known), "left-out training", report)


Split = tuple[Sequence[Row], Sequence[Row]]
"""Rows that are known, and rows that are asked about."""


def by_table(splits: Sequence[Split], name: str, report: Report) -> None:
    """What `katsura plan --points` makes of the same: every decision counts, whatever it answers."""
    scores, dry, told = [], 0, {}
    for known, asked in splits:
        answers = tabled(known, asked, learn(known))
        mine, without = choose_by_table(decisions(asked), answers)
        scores, dry, told = scores + mine, dry + without, told | answers
    rows = [r for _, asked in splits for r in asked]
    for trust in dict.fromkeys(trust for _, _, trust in told.values()):
        pairs = [(told[r.id][0], r.point.seconds) for r in rows if r.id in told and told[r.id][2] is trust]
        report.errors(f"TPOT, {name} rows by plan --points: {trust.value}", errors(pairs))
    kept, share = summed(scores)
    label = f"plan --points, {name} rows ({len(scores)} decisions, {len(told)} of {len(rows)} rows answered, {dry} dry)"
    report.add(f"SLO kept by the choice: {label}", kept, "share", 0.95)
    report.add(f"throughput of the choice against the best: {label}", share, "share", 0.95)
    capped = summed([min(score, 1.0) for score in scores])[1]
    report.add(f"the same, where it is above the best counted as the best: plan --points, {name} rows", capped, "share")


def _pair(r: Row, told: Mapping[str, Belief]) -> tuple[float, float]:
    return told[r.id].seconds, r.point.seconds


def placement(sizes: Sequence[tuple[int, int, float, float]], seeds: int, report: Report) -> None:
    for nodes, services, seconds, goal in sizes:
        for seed in range(1, seeds + 1):
            problem = synthetic_problem(nodes, services, seed)
            began, cpu = time.perf_counter(), time.process_time()
            solution = solve(problem, Effort(gap=goal / 2, seconds=seconds))
            made = solution.plan
            wall, cpu = time.perf_counter() - began, time.process_time() - cpu
            label = f"synthetic, {nodes} nodes, {services} models, seed {seed}"
            began = time.perf_counter()
            solution.explained()
            explained = wall + time.perf_counter() - began
            report.add(f"explained plan, {label}", explained, "s", None, False, wall, "unexplained")
            report.add(f"gap, {label} ({wall:.0f} s wall, {cpu:.0f} s CPU)", made.gap, "of the cost", goal, False)
            columns = enumerate_patterns(problem).columns(problem.classes)
            for name, rival in (("greedy", greedy), ("fastest first", fastest_first), ("Melange's program", melange)):
                usd, served = cost_of(problem, columns, rival(problem, columns))
                said = name if served > 0.999 else f"{name} (serves {served:.0%})"
                report.add(f"dollars per hour, {label}", made.hourly_usd, "$/h", None, False, usd, said)
            grown(solution, label, report)
            if nodes <= 100:
                in_use(problem, columns, made, seed, report)


def grown(before: Solution, label: str, report: Report) -> None:
    """A replan after three demands have grown by a tenth: by who made the plan, and by who starts afresh."""
    problem = before.problem
    names = [s.name for s in problem.services if isinstance(s, ModelService)][:3]
    services = tuple(
        replace(s, requests_s=1.1 * s.requests_s) if isinstance(s, ModelService) and s.name in names else s
        for s in problem.services
    )
    changed, current = replace(problem, services=services), running(before.plan)
    goal = 5.0 if sum(len(c.nodes) for c in problem.classes) <= 1000 else None
    first, memo = None, before.patterns.memo
    asked = (("replan", False, memo), ("explained replan", True, memo), ("replan that remembers nothing", False, None))
    for what, explain, known in asked:
        began, cpu = time.perf_counter(), time.process_time()
        again = replan(changed, Effort(gap=0.01, seconds=4.0), current, explain=explain, memo=known)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        said = f"{what}, {label} (gap {again.plan.gap:.2%}, {cpu:.1f} s CPU)"
        report.add(said, wall, "s", goal, False, first, "the first of these")
        first = first or wall


def in_use(problem: Problem, columns: Sequence[Column], made: Plan, seed: int, report: Report) -> None:
    """One made-up trace under every planner's plan: what a million tokens cost, and who kept the times."""
    ours = replayed(made, problem, REPLAY_S, seed)
    for name, rival in (("greedy", greedy), ("fastest first", fastest_first), ("Melange's program", melange)):
        theirs = replayed(plan_of(problem, columns, rival(problem, columns)), problem, REPLAY_S, seed)
        label = f"simulated, seed {seed}, {ours.requests} requests"
        report.add(
            f"$ per million tokens, {label}", ours.usd_per_million, "$", None, False, theirs.usd_per_million, name
        )
        report.add(f"requests that kept their times, {label}", ours.kept, "share", None, True, theirs.kept, name)


CLUSTERS = {
    "24 nodes of one GPU (4 A100-40, 8 L4, 12 T4)": (("A100-40", 4, 1), ("L4", 8, 1), ("T4", 12, 1)),
    "10 nodes (2 of 8 A100-80, 4 of 8 L40S, 4 of 4 L4)": (("A100-80", 2, 8), ("L40S", 4, 8), ("L4", 4, 4)),
}


def beside_helix(seconds: float, report: Report) -> None:
    """One model on all of a small cluster, for the most tokens per second: what Helix is made for."""
    for label, mix in CLUSTERS.items():
        for card, name in ((cards()[1], "32B"), (cards()[2], "70B")):
            service = model_service("model", card, 0.05, itl_ms=None, topologies=(UNIFIED, SPLIT, PIPELINE))
            classes = [node_class(device, n, per_node=each) for device, n, each in mix]
            made = plan(
                problem_of([service], classes, Objective.THROUGHPUT), Effort(0.01, None, seconds), explain=False
            )
            ours = made.services[0].capacity * service.load.output
            named = catalogue.built_in().named
            stages = [stage_of(f"{d}-{i}", named(d), each, service) for d, n, each in mix for i in range(n)]
            helix = Helix(stages, card.layers)
            found = helix.solve(seconds)
            theirs, bound = -found.objective * helix.unit, -found.bound * helix.unit
            what = f"output tokens/s, {name} on {label} (gap {made.gap:.1%})"
            rival = f"Helix's program (gap {bound / theirs - 1:.0%} after {seconds:.0f} s)"
            report.add(what, ours, "tokens/s", None, True, theirs, rival)


def beside_artefact(folder: Path, report: Report) -> None:
    """Helix's own instances in its own units; what its program says of our placements is what counts."""
    for name in artefact.FOLDERS:
        instance, ours = artefact.result(folder, name)
        print(
            f"  {name}: flow of our layers in Helix's program {ours.checked:.2f}, no placement above {ours.bound:.2f}"
        )
        what = f"tokens/s in Helix's units, {name} (gap {1 - ours.ours / ours.bound:.1%}, {ours.seconds:.0f} s)"
        report.add(what, ours.checked, "tokens/s", 0.99 * instance.found, True, instance.found, "Helix's placement")


def write_coefficients(rows: Sequence[Row]) -> None:
    path = Path(calibration.__file__).with_name("coefficients.json")
    data = json.loads(path.read_text())
    found = learn(train(rows))
    data["kinds"]["gpu"] = calibration.coefficients_as_json(found.every)
    data["devices"] = {SYSTEMS[name][0]: calibration.coefficients_as_json(c) for name, c in found.systems.items()}
    path.write_text(json.dumps(data, indent=1) + "\n")
    print(f"wrote {path}")


def setup() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(HOME)]
    subprocess.run([*command, f"aiconfigurator-core=={aiconfigurator.VERSION}"], check=True)
    wheel = next(HOME.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        wanted = [n for n in archive.namelist() if n.endswith(("silicon_sample.csv", "_config.json"))]
        archive.extractall(HOME, wanted)
    aiconfigurator.setup(PEER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 100 nodes, 40 answers of AIConfigurator")
    parser.add_argument("--setup", action="store_true", help="get the points and AIConfigurator (82 MB each, once)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--write-coefficients", action="store_true", help="fit on the training rows and store")
    parser.add_argument("--only", choices=("prediction", "placement"), help="one half of it")
    parser.add_argument("--helix", type=Path, metavar="FOLDER", help="a git clone of Helix's artefact")
    arguments = parser.parse_args()
    if arguments.setup:
        setup()
    report = Report()
    folder = HOME / "aiconfigurator_core"
    if (folder / "systems" / "silicon_sample.csv").exists():
        rows = read_rows(folder)
        if arguments.write_coefficients:
            write_coefficients(rows)
        if arguments.only != "placement":
            prediction(rows, 40 if arguments.quick else aiconfigurator.SAMPLE, report)
    else:
        report.missing("prediction", "aiconfigurator-core's measured points", "run with --setup")
    sizes = [(100, 12, 10.0, 0.02)]
    if not arguments.quick:
        sizes += [(1000, 24, 60.0, 0.01), (5000, 24, 120.0, 0.05)]
    if arguments.only != "prediction":
        placement(sizes, 1 if arguments.quick else 3, report)
        beside_helix(10.0 if arguments.quick else 60.0, report)
        if arguments.helix:
            beside_artefact(arguments.helix, report)
        else:
            report.missing("tokens/s in Helix's units", "Helix's placement", "name a clone of it: --helix")
    if arguments.json:
        arguments.json.write_text(json.dumps(report.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
