"""Configurations of deployments that people run and time before they commit: which to run next, and what ran.

`katsura plan --trials FILE` keeps the table (deployment, device, units, batch, itl_ms; a row without a time is to be
run), `katsura calibrate --trials FILE` fills it in. Once the trials of a deployment are settled, what ran replaces
predictions on its devices. `trials` decides.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import batch_limit, decode_terms
from katsura.placement.operate import batch_allowed, batches
from katsura.placement.patterns import batch_most, layout_of, unit_prices, units_by_kind
from katsura.placement.problem import UNIFIED, ModelService, Problem, Ran
from katsura.placement.trials import RUNS, Candidate, beliefs, propose, settle

_COLUMNS: Final = ("deployment", "device", "units", "batch", "itl_ms")


@dataclass(frozen=True, slots=True)
class Trial:
    """`batch` requests at once to one replica of `deployment` on `units` of `device`; `itl_s` is None until it ran."""

    deployment: str
    device: str
    units: int
    batch: int
    itl_s: float | None = None

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.batch} at once on {self.units} {self.device}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the trials of one deployment stand.

    Attributes:
        ran: how many did. best: the cheapest per token of those that kept the limit, else the fastest.
        next: to be run; None: settled. expected_s: what `next` is thought to take. why: no trials at all, in words.
    """

    deployment: str
    ran: int = 0
    best: Trial | None = None
    next: Trial | None = None
    expected_s: float = 0.0
    limit_s: float = 0.0
    why: str = ""


def read_trials(text: str, file: str) -> tuple[Trial, ...]:
    """The table.

    Raises:
        InvalidArgumentError: naming file, line and column.
    """
    rows = csv.DictReader(io.StringIO(text))
    if tuple(rows.fieldnames or ()) != _COLUMNS:
        said = ",".join(rows.fieldnames or ()) or "nothing"
        raise InvalidArgumentError(
            f"{file}:1: begins with {said}; a table of trials has {','.join(_COLUMNS)}", field="trials"
        )
    made: list[Trial] = []
    for line, row in enumerate(rows, 2):
        numbers = {}
        for name in ("units", "batch", "itl_ms"):
            cell = (row[name] or "").strip()
            try:
                numbers[name] = float(cell) if cell or name != "itl_ms" else None
            except ValueError:
                numbers[name] = math.nan
            value = numbers[name]
            if value is not None and not (0 < value < math.inf and (name == "itl_ms" or value == int(value))):
                wanted = "a number above 0, or nothing" if name == "itl_ms" else "a whole number above 0"
                raise InvalidArgumentError(f"{file}:{line}: {name}: expected {wanted}, got {cell!r}", field="trials")
        itl_ms = numbers["itl_ms"]
        units, batch = (int(numbers[name] or 0) for name in ("units", "batch"))
        made.append(Trial(row["deployment"], row["device"], units, batch, None if itl_ms is None else itl_ms / 1e3))
    return tuple(made)


def write_trials(trials: Sequence[Trial]) -> str:
    """The text that `read_trials` reads."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for t in trials:
        rows.writerow((t.deployment, t.device, t.units, t.batch, "" if t.itl_s is None else f"{t.itl_s * 1e3:.4g}"))
    return out.getvalue()


def configurations(problem: Problem, service: ModelService) -> tuple[tuple[Trial, Candidate], ...]:
    """Every replica of `service` that could be run: slices of nodes and batches; sequences are per dollar and hour."""
    prices = unit_prices(problem)
    made = []
    for kind, units in units_by_kind(service, problem).items():
        known = problem.calibration.of(units[0].device) if units else None
        if known is None or known.beyond(service.load.context) is not None:
            continue
        for unit in units:
            layout, card, precision = layout_of(unit), service.card, service.precision
            fits = batch_limit(card, unit.device, precision, layout, service.load)
            allowed = batch_allowed(card, precision, service.load, known, batch_most(unit), service.kv_bytes)
            for batch in batches(min(fits, allowed)):
                terms = decode_terms(card, unit.device, precision, layout, batch, service.load)
                candidate = Candidate(terms, batch / (unit.count * prices[kind]), known)
                made.append((Trial(service.name, kind, unit.count, batch), candidate))
    return tuple(made)


def standings(problem: Problem, trials: Sequence[Trial]) -> tuple[Standing, ...]:
    """What to run next for each deployment, or what its trials came to.

    Raises:
        InvalidArgumentError: a trial is of no deployment, or of no configuration that it could have.
    """
    models = {s.name: s for s in problem.services if isinstance(s, ModelService)}
    strangers = {t.deployment for t in trials} - set(models)
    if strangers:
        raise InvalidArgumentError(
            f"trials of {', '.join(sorted(strangers))}, but the deployments are {', '.join(sorted(models))}",
            field="trials",
        )
    return tuple(_standing(problem, s, [t for t in trials if t.deployment == s.name]) for s in models.values())


def _standing(problem: Problem, service: ModelService, mine: Sequence[Trial]) -> Standing:
    if UNIFIED not in service.topologies:
        return Standing(service.name, why="only replicas in one piece (topology Unified) are tried")
    if service.slo.itl_s is None:
        return Standing(service.name, why="it has no slo.itlMs, so there is nothing to be near to")
    found = configurations(problem, service)
    where = {(t.device, t.units, t.batch): i for i, (t, _) in enumerate(found)}
    for t in mine:
        if (t.device, t.units, t.batch) not in where:
            raise InvalidArgumentError(f"{t.deployment}: {t.what} is no configuration of it here", field="trials")
    tried = {where[t.device, t.units, t.batch]: t.itl_s for t in mine if t.itl_s is not None}
    candidates = [c for _, c in found]
    limit_s = service.slo.itl_s
    best = replace(found[i][0], itl_s=tried[i]) if tried and (i := settle(candidates, tried, limit_s)) >= 0 else None
    waiting = [where[t.device, t.units, t.batch] for t in mine if t.itl_s is None]
    chosen = waiting[0] if waiting else propose(candidates, tried, limit_s, RUNS)
    if chosen is None:
        why = "" if tried else "no configuration of it here has a chance to keep its times"
        return Standing(service.name, len(tried), best, limit_s=limit_s, why=why)
    expected = beliefs(candidates, tried)[chosen].seconds
    return Standing(service.name, len(tried), best, found[chosen][0], expected, limit_s)


def with_runs(problem: Problem, trials: Sequence[Trial], found: Sequence[Standing]) -> Problem:
    """`problem` in which the runs of deployments whose trials are settled count as they ran."""
    settled = {s.deployment for s in found if s.next is None and not s.why}

    def known(service: ModelService) -> ModelService:
        mine = (t for t in trials if t.deployment == service.name and t.itl_s is not None)
        ran = tuple(Ran(t.device, t.units, t.batch, t.itl_s or 0.0) for t in mine)
        return replace(service, ran=ran) if service.name in settled else service

    return replace(problem, services=tuple(known(s) if isinstance(s, ModelService) else s for s in problem.services))


def explain_trials(found: Sequence[Standing], file: str) -> str:
    """Where trials stand, and how to go on, as text."""
    lines = [f"Trials ({file})"]
    for s in found:
        if s.why:
            lines.append(f"  {s.deployment}: {s.why}")
            continue
        best = "nothing ran yet"
        if s.best is not None and s.best.itl_s is not None:
            kept = "" if s.best.itl_s <= s.limit_s else ", TOO SLOW"
            best = f"{s.best.what}, {s.best.itl_s * 1e3:.1f} ms between tokens{kept}"
        allowed = f"{s.limit_s * 1e3:.0f} ms allowed"
        if s.next is None:
            lines.append(f"  {s.deployment}: settled after {s.ran} runs, which the plan counts: {best} ({allowed})")
            continue
        lines.append(f"  {s.deployment}: {s.ran} of at most {RUNS} ran; best: {best} ({allowed})")
        lines.append(f"      run next: {s.next.what}, about {s.expected_s * 1e3:.0f} ms expected. Time it with")
        lines.append(
            f"      katsura calibrate -f MANIFEST --trials {file} --url URL, or write its itl_ms into the table"
        )
    return "\n".join(lines)
