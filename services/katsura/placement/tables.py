"""Tables of measured serving points: configurations that were timed count as they ran, others as they foretell.

`katsura plan --points FILE` reads one. On a device whose table holds a deployment nothing else of it counts there,
unless guesses are asked for (`--extrapolate`). `interpolate` holds the formula, `patterns` asks for the points, `tally`
for what the tables are worth.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import (
    REACH,
    Coefficients,
    ErrorClass,
    Layout,
    Load,
    batch_limit,
    decode_terms,
    sequence_bytes,
    weights_bytes,
)
from katsura.placement.interpolate import Campaign, Spot
from katsura.placement.operate import UTILISATION, Point, Refusal, batch_allowed, batches, replica_ttft_s
from katsura.placement.patterns import Unit, batch_most, layout_of
from katsura.placement.problem import ModelService, Problem, Timed

_NAMES: Final = ("deployment", "device", "engine", "version")
_WHOLE: Final = ("units", "prompt", "output", "batch")
_COLUMNS: Final = (*_NAMES, *_WHOLE, "itl_ms")
_ROWS_MOST: Final = 1000
"""Rows of one deployment on one device: interpolating takes the cube of them."""


def read_points(text: str, file: str) -> tuple[tuple[str, Timed], ...]:
    """Rows by deployment, from CSV; further columns (throughput, say) are not read.

    Raises:
        InvalidArgumentError: naming file, line and column; also where one deployment has rows of two engines, or of two
            versions, on one device.
    """
    rows = csv.DictReader(io.StringIO(text))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise InvalidArgumentError(
            f"{file}:1: lacks {', '.join(missing)}; measured points have {','.join(_COLUMNS)}", field="points"
        )
    made: list[tuple[str, Timed]] = []
    by: dict[tuple[str, str], tuple[str, int]] = {}
    for row in rows:
        at = f"{file}:{rows.line_num}"
        deployment, device, *engine = ((row[name] or "").strip() for name in _NAMES)
        ran_by = " ".join(engine)
        first, line = by.setdefault((deployment, device), (ran_by, rows.line_num))
        if ran_by != first:
            raise InvalidArgumentError(
                f"{at}: version: {ran_by}, but line {line} of {deployment} on {device} is of {first}; versions differ "
                "by up to 40 %, so keep the one that will run",
                field="points",
            )
        units, prompt, output, batch = (int(_number(row, name, at)) for name in _WHOLE)
        made.append((deployment, Timed(device, units, prompt, output, batch, _number(row, "itl_ms", at) / 1e3, ran_by)))
    return tuple(made)


def _number(row: dict[str, str], name: str, at: str) -> float:
    cell, whole = (row[name] or "").strip(), name in _WHOLE
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf and (not whole or value == int(value))):
        wanted = "a whole number above 0" if whole else "a number above 0"
        raise InvalidArgumentError(f"{at}: {name}: expected {wanted}, got {cell!r}", field="points")
    return value


def with_points(problem: Problem, points: Sequence[tuple[str, Timed]], file: str) -> Problem:
    """`problem` whose deployments know their rows.

    Raises:
        InvalidArgumentError: a row is of no deployment here; or too many are of one.
    """
    models = {s.name for s in problem.services if isinstance(s, ModelService)}
    if strangers := {name for name, _ in points} - models:
        raise InvalidArgumentError(
            f"{file}: no deployment is called {', '.join(sorted(strangers))}; known: {', '.join(sorted(models))}",
            field="points",
        )
    found = []
    for s in problem.services:
        mine = tuple(timed for name, timed in points if name == s.name)
        if len(mine) > _ROWS_MOST:
            raise InvalidArgumentError(f"{file}: {len(mine)} rows of {s.name}; at most {_ROWS_MOST}", field="points")
        found.append(replace(s, timed=mine) if isinstance(s, ModelService) else s)
    return replace(problem, services=tuple(found))


def campaign_of(service: ModelService, kind: str, units: Sequence[Unit], prior: Coefficients) -> Campaign:
    """The rows of `service` on `kind` that are of one of `units`."""
    by_units = {u.count: u for u in units}
    mine = [t for t in service.timed if t.device == kind and t.units in by_units]
    spots = [_spot(service, by_units[t.units], t.batch, Load(t.prompt, t.output)) for t in mine]
    return Campaign(tuple(spots), tuple(t.itl_s for t in mine), prior)


def _spot(service: ModelService, unit: Unit, batch: int, load: Load) -> Spot:
    terms = decode_terms(service.card, unit.device, service.precision, layout_of(unit), batch, load)
    return Spot(_size(unit), load, batch, terms)


def _size(unit: Unit) -> Layout:
    """Where a slice of cores, too, has a size of its own (to the cost model any number of them is one device)."""
    return Layout(unit.count, per_node=unit.count)


def tabled_points(
    service: ModelService, kind: str, units: Sequence[Unit], known: Coefficients, confidence: float
) -> Iterator[tuple[Unit, Point | Refusal]]:
    """Where a replica runs on each of `units`, by the rows of `service` on `kind`.

    A time between tokens is checked against its limit as it was measured, or with the cross-validated margin of the
    table (none at a confidence of 0.5); the time to the first token is a prediction of `known`.
    """
    campaign = campaign_of(service, kind, units, known)
    for unit in units:
        yield unit, _best(service, unit, campaign, known, confidence > 0.5)


def _best(service: ModelService, unit: Unit, campaign: Campaign, known: Coefficients, wary: bool) -> Point | Refusal:
    """The most requests per second of the batches that the table tells of and that keep the objectives."""
    card, precision, load, slo, layout = service.card, service.precision, service.load, service.slo, layout_of(unit)
    fits = min(
        batch_limit(card, unit.device, precision, layout, load),
        batch_allowed(card, precision, load, replace(known, extrapolate=True), batch_most(unit), service.kv_bytes),
    )
    ran = _ran(campaign, unit, load)
    sizes = sorted({*batches(fits), *(int(t.batch) for t in campaign.spots if t.batch <= fits)})
    if not sizes:
        return Refusal("memory", "no sequence fits beside the weights")
    asked = [_spot(service, unit, b, load) for b in sizes]
    why = [campaign.too_far(spot) for spot in asked]
    near = [spot for spot, reason in zip(asked, why, strict=True) if reason is None]
    if not near:
        return Refusal("extrapolation", f"its table does not reach {why[0]}, told of up to {REACH:g}x beyond")
    made: list[Point] = []
    for spot, told in zip(near, campaign.foretell(near), strict=True):
        batch = int(spot.batch)
        # A table's prompts are computed whole: where part of them is held already, its rows are neighbours only.
        exact = batch in ran and not load.cached_share
        itl = ran[batch] if exact else told.seconds
        held_s = told.held_s if wary and not exact else itl
        ttft = replica_ttft_s(card, unit.device, precision, layout, load, known, batch, itl)
        first_s = ttft * known.quantile_90 if wary else ttft
        if (slo.itl_s is not None and held_s > slo.itl_s) or (slo.ttft_s is not None and first_s > slo.ttft_s):
            continue
        held = weights_bytes(card, precision, layout) + batch * sequence_bytes(card, precision, layout, load)
        rate = UTILISATION * batch / (load.output * itl)
        between = ErrorClass.INTERPOLATED if told.between else ErrorClass.EXTENDED
        trust, margin = (ErrorClass.MEASURED, 1.0) if exact else (between, told.margin)
        made.append(Point(batch, itl, ttft, rate, "table", trust, held, margin=margin))
    if not made:
        return Refusal("table", f"none of the {len(near)} batches that its table tells of keeps its times")
    return max(made, key=lambda p: p.requests_s)


def _ran(campaign: Campaign, unit: Unit, load: Load) -> dict[int, float]:
    """Seconds of the rows of this very slice and load, by batch: the median where one ran more than once."""
    times: dict[int, list[float]] = defaultdict(list)
    for spot, seconds in zip(campaign.spots, campaign.seconds, strict=True):
        if (spot.layout, spot.load.prompt, spot.load.output) == (_size(unit), load.prompt, load.output):
            times[int(spot.batch)].append(seconds)
    return {batch: statistics.median(same) for batch, same in times.items()}
