"""How far predictions are off, and what choices made by them are worth, on points that the fits did not see."""

from __future__ import annotations

import hashlib
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from placing.points import Row, train

from katsura.placement.cost import Coefficients, ErrorClass
from katsura.placement.fit import First, believe, fit, fit_first
from katsura.placement.interpolate import Campaign, Spot
from katsura.placement.trials import Candidate, propose, settle

PRIOR = Coefficients()
SLOS_S = (0.020, 0.030, 0.050)
GRACE = 1.05
OWN_ROWS = 100
OWN_PULL = 100.0
"""Points that the fit of all systems is worth to the fit of one (chosen on training rows, the model left out)."""
TENTH = 1.2816
"""Standard deviations that nine of ten draws stay below."""


@dataclass(frozen=True)
class Fits:
    """Coefficients from all systems, and those of a system with enough rows, drawn towards them."""

    every: Coefficients
    systems: Mapping[str, Coefficients]

    def of(self, r: Row) -> Coefficients:
        return self.systems.get(r.system, self.every)

    def step_s(self, r: Row) -> float:
        return self.of(r).step_s(r.point.terms)

    def first_s(self, r: Row) -> float:
        """The load generators keep a fixed number of requests open, so nobody waits for a place in the batch."""
        return self.of(r).first_s(r.prefill_floor_s, r.prefill_ring_s, self.step_s(r), r.batch)


def learn(rows: Sequence[Row]) -> Fits:
    every = _learn(rows, PRIOR, 1.0)
    own = {name: [r for r in rows if r.system == name] for name in sorted({r.system for r in rows})}
    return Fits(every, {name: _learn(mine, every, OWN_PULL) for name, mine in own.items() if len(mine) >= OWN_ROWS})


def _learn(rows: Sequence[Row], prior: Coefficients, pull: float) -> Coefficients:
    c = fit([r.point for r in rows], prior, ErrorClass.CALIBRATED, "2026-04", pull)
    first = [First(r.prefill_floor_s, r.prefill_ring_s, c.step_s(r.point.terms), r.batch, r.ttft_s) for r in rows]
    return fit_first(first, c)


def errors(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of (predicted, measured)."""
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


def leave_out(rows: Sequence[Row], key: Callable[[Row], str]) -> tuple[list[tuple[Row, float]], dict[str, Fits]]:
    """Every aggregated row, predicted by a fit that saw neither its group nor any held or pledged row; and the fits."""
    agg, known = [r for r in rows if r.mode == "agg"], train(rows)
    fits = {group: learn([r for r in known if key(r) != group]) for group in sorted({key(r) for r in agg})}
    return [(r, fits[key(r)].step_s(r)) for r in agg], fits


@dataclass(frozen=True)
class Shots:
    """Rows of groups with enough training rows: the median thought, the 90 % bound of it, and what was shown."""

    median: list[tuple[Row, float]]
    bound: list[tuple[Row, float]]
    shown: set[tuple[str, ...]]


def few_shot(rows: Sequence[Row], by_model: Mapping[str, Fits], shots: int = 5) -> Shots:
    """What the fit without the model believes once `shots` training rows of the row's own group are shown to it."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        if r.mode == "agg":
            groups[r.group].append(r)
    median, bound, shown = [], [], set()
    for members in groups.values():
        ordered = sorted(members, key=lambda r: hashlib.sha256(r.id.encode()).hexdigest())
        seen = [r for r in ordered if not r.pledged and not r.held][:shots]
        if len(seen) < shots:
            continue
        found = believe(
            [r.point for r in seen], by_model[members[0].model].of(members[0]), [r.point.terms for r in members]
        )
        shown |= {r.measured for r in seen}
        median += [(r, b.seconds) for r, b in zip(members, found, strict=True)]
        bound += [(r, b.seconds * math.exp(TENTH * b.spread)) for r, b in zip(members, found, strict=True)]
    return Shots(median, bound, shown)


@dataclass(frozen=True)
class Decision:
    """The measured configurations of one group and load, the limit on the step, and the best that keeps it."""

    rows: tuple[Row, ...]
    limit_s: float
    best: float

    def score(self, chosen: Row) -> float:
        """Tokens per second and device of the choice against the best; 0 where it breaks the limit by over 5 %."""
        return rate(chosen) / self.best if chosen.point.seconds <= self.limit_s * GRACE else 0.0


def rate(r: Row) -> float:
    return r.batch / r.point.seconds / r.devices


def decisions(rows: Iterable[Row]) -> list[Decision]:
    """Wherever there are three configurations, one that keeps the limit and one that does not."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], Row]] = defaultdict(dict)
    for r in rows:
        groups[*r.group, r.load].setdefault((*r.measured, r.layout, r.batch), r)
    made = []
    for members in groups.values():
        own = tuple(members.values())
        for limit_s in SLOS_S:
            good = [r for r in own if r.point.seconds <= limit_s]
            if len({(r.devices, r.batch) for r in own}) >= 3 and good and len(good) < len(own):
                made.append(Decision(own, limit_s, max(rate(r) for r in good)))
    return made


def summed(scores: Sequence[float]) -> tuple[float, float]:
    """Share of decisions that keep the limit, and the mean score."""
    return sum(s > 0 for s in scores) / len(scores), statistics.fmean(scores)


def choose(made: Sequence[Decision], predicted: Mapping[str, float], bound: Mapping[str, float]) -> tuple[float, float]:
    """Pick by prediction, among what is bound to keep the limit; score by measurement."""
    scores = []
    for d in made:
        allowed = [r for r in d.rows if bound[r.id] <= d.limit_s] or [min(d.rows, key=lambda r: bound[r.id])]
        scores.append(d.score(max(allowed, key=lambda r: r.batch / predicted[r.id] / r.devices)))
    return summed(scores)


def choose_by_running(made: Sequence[Decision], by_model: Mapping[str, Fits], runs: int) -> tuple[float, float, float]:
    """As `choose`, but up to `runs` proposals are run and the best of those is kept; also: the mean number of runs."""
    scores, used = [], []
    for d in made:
        prior = by_model[d.rows[0].model].of(d.rows[0])
        candidates = [Candidate(r.point.terms, r.batch / r.devices, prior) for r in d.rows]
        tried: dict[int, float] = {}
        while (i := propose(candidates, tried, d.limit_s, runs)) is not None:
            tried[i] = d.rows[i].point.seconds
        scores.append(d.score(d.rows[settle(candidates, tried, d.limit_s)]))
        used.append(len(tried))
    return *summed(scores), statistics.fmean(used)


def tabled(seen: Sequence[Row], asked: Sequence[Row], fits: Fits) -> dict[str, tuple[float, float, ErrorClass]]:
    """Seconds, what of them is held against a limit, and the error class of the rows that `katsura plan --points`
    answers: `seen` of one model, system, engine, version and precisions are one table; where there is none, the cost
    model answers."""
    tables: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for r in seen:
        tables[*r.group, r.version, r.modes].append(r)
    made = {}
    for key in dict.fromkeys((*r.group, r.version, r.modes) for r in asked):
        mine = [r for r in asked if (*r.group, r.version, r.modes) == key]
        if not (rows := tables[key]):
            for r in mine:
                step_s, c = fits.step_s(r), fits.of(r)
                made[r.id] = step_s, step_s * c.quantile_90, c.error_class
            continue
        table = Campaign(tuple(_spot(r) for r in rows), tuple(r.point.seconds for r in rows), fits.of(rows[0]))
        near = [r for r in mine if table.too_far(_spot(r)) is None]
        for r, told in zip(near, table.foretell([_spot(r) for r in near]), strict=True):
            made[r.id] = told.seconds, told.held_s, ErrorClass.INTERPOLATED if told.between else ErrorClass.EXTENDED
    return made


def left_out(rows: Sequence[Row]) -> list[tuple[list[Row], list[Row]]]:
    """Five splits into rows that are known and rows that are not, by a hash of the id."""
    number = {r.id: int(hashlib.sha256(f"cv{r.id}".encode()).hexdigest(), 16) % 5 for r in rows}
    made = []
    for fold in range(5):
        seen = [r for r in rows if number[r.id] != fold]
        shown = {r.measured for r in seen}
        made.append((seen, [r for r in rows if number[r.id] == fold and r.measured not in shown]))
    return made


def by_another_version(rows: Sequence[Row], fits: Fits) -> list[tuple[Row, float]]:
    """Seconds of the rows of each version by the largest table (ten rows or more) of another one of the same engine,
    model, system and precisions."""
    tables: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for r in rows:
        tables[*r.group, r.modes][r.version].append(r)
    made = []
    for versions in tables.values():
        for version, mine in versions.items():
            other = max((o for v, o in versions.items() if v != version), key=len, default=[])
            if len(other) < 10:
                continue
            table = Campaign(tuple(_spot(r) for r in other), tuple(r.point.seconds for r in other), fits.of(other[0]))
            shown = {r.measured for r in other}
            near = [r for r in mine if r.measured not in shown and table.too_far(_spot(r)) is None]
            told = table.foretell([_spot(r) for r in near])
            made += [(r, t.seconds) for r, t in zip(near, told, strict=True)]
    return made


def _spot(r: Row) -> Spot:
    return Spot(r.layout, r.load, r.batch, r.point.terms)


def choose_by_table(
    made: Sequence[Decision], told: Mapping[str, tuple[float, float, ErrorClass]]
) -> tuple[list[float], int]:
    """Scores as of `choose`, among what was answered, 0 where nothing was; and of how many decisions nothing kept its
    limit by what was told (the plan says so then, and the score is that of the fastest)."""
    scores, dry = [], 0
    for d in made:
        able = [r for r in d.rows if r.id in told]
        allowed = [r for r in able if told[r.id][1] <= d.limit_s]
        dry += not allowed
        picks = allowed or sorted(able, key=lambda r: told[r.id][1])[:1]
        scores.append(max(((r.batch / told[r.id][0] / r.devices, d.score(r)) for r in picks), default=(0.0, 0.0))[1])
    return scores, dry


def choose_by_chance(made: Sequence[Decision], runs: int, draws: int = 20) -> tuple[float, float]:
    """As `choose_by_running`, with configurations drawn by lot."""
    random_ = random.Random(1)
    scores = []
    for d in made:
        for _ in range(draws):
            tried = random_.sample(d.rows, min(runs, len(d.rows)))
            kept = [r for r in tried if r.point.seconds <= d.limit_s]
            scores.append(d.score(max(kept, key=rate) if kept else min(tried, key=lambda r: r.point.seconds)))
    return summed(scores)


def choose_with_error(made: Sequence[Decision], spread: float, margin: float, draws: int = 5) -> tuple[float, float]:
    """What choices would be worth if predictions were the measured times with log-normal errors of `spread`."""
    random_ = random.Random(1)
    scores = []
    for _ in range(draws):
        told = {r.id: r.point.seconds * math.exp(random_.gauss(0, spread)) for d in made for r in d.rows}
        scores.append(choose(made, told, {k: v * math.exp(margin * spread) for k, v in told.items()}))
    return statistics.fmean(s for s, _ in scores), statistics.fmean(r for _, r in scores)


def repeated(rows: Iterable[Row]) -> dict[str, float]:
    """For every row the median of all measurements of its configuration (layout, batch, load): engine versions and
    what is not published differ within it, so no planner that is told the configuration alone can know more."""
    times: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    keys = {}
    for r in rows:
        keys[r.id] = (*r.group, r.load, r.layout, r.batch, r.modes)
        times[keys[r.id]].append(r.point.seconds)
    return {row_id: statistics.median(times[key]) for row_id, key in keys.items()}
