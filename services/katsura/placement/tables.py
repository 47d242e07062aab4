"""Tables of measured serving points: configurations that were timed count as they ran, those between as interpolated.

`katsura plan --points FILE` reads one. On a device whose table holds a deployment nothing else of it counts there,
unless guesses are asked for (`--extrapolate`). `interpolate` holds the formula, `patterns` asks for the points.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.catalogue import Device
from katsura.placement.cost import (
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
from katsura.placement.problem import ModelService, Problem, Timed

_NAMES: Final = ("deployment", "device", "engine", "version")
_WHOLE: Final = ("units", "prompt", "output", "batch")
_COLUMNS: Final = (*_NAMES, *_WHOLE, "itl_ms")
_ROWS_MOST: Final = 1000
"""Rows of one deployment on one device: interpolating takes the cube of them."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What a replica may take: `units` accelerators or cores, as one `device`, cut by `layout`; `most` at once."""

    units: int
    device: Device
    layout: Layout
    most: int


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
        made.append((deployment, Timed(device, units, prompt, output, batch, _number(row, "itl_ms", at) / 1e3)))
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


def campaign_of(service: ModelService, kind: str, slices: Sequence[Slice], prior: Coefficients) -> Campaign:
    """The rows of `service` on `kind` that are of one of `slices`."""
    by_units = {s.units: s for s in slices}
    mine = [t for t in service.timed if t.device == kind and t.units in by_units]
    spots = [_spot(service, by_units[t.units], t.batch, Load(t.prompt, t.output)) for t in mine]
    return Campaign(tuple(spots), tuple(t.itl_s for t in mine), prior)


def _spot(service: ModelService, s: Slice, batch: int, load: Load) -> Spot:
    return Spot(s.layout, load, batch, decode_terms(service.card, s.device, service.precision, s.layout, batch, load))


def tabled_points(
    service: ModelService, kind: str, slices: Sequence[Slice], known: Coefficients, confidence: float
) -> Iterator[tuple[Slice, Point | Refusal]]:
    """Where a replica runs on each of `slices`, by the rows of `service` on `kind`.

    A time between tokens is checked against its limit as it was measured, or with the cross-validated margin of the
    table (none at a confidence of 0.5); the time to the first token is a prediction of `known`.
    """
    campaign = campaign_of(service, kind, slices, known)
    factor = campaign.judged().factor if campaign.spots and confidence > 0.5 else 0.0
    first = known.quantile_90 if confidence > 0.5 else 1.0
    for s in slices:
        timed = [t for t in service.timed if t.device == kind and t.units == s.units]
        yield s, _best(service, s, campaign, timed, known, factor, first)


def _best(
    service: ModelService,
    s: Slice,
    campaign: Campaign,
    timed: Sequence[Timed],
    known: Coefficients,
    factor: float,
    first: float,
) -> Point | Refusal:
    """The most requests per second of the batches that the table reaches and that keep the objectives."""
    card, precision, load, slo = service.card, service.precision, service.load, service.slo
    fits = min(
        batch_limit(card, s.device, precision, s.layout, load),
        batch_allowed(card, precision, load, replace(known, extrapolate=True), s.most, service.kv_bytes),
    )
    sizes = sorted({*batches(fits), *(t.batch for t in timed if t.batch <= fits)})
    if not sizes:
        return Refusal("memory", "no sequence fits beside the weights")
    asked = [_spot(service, s, b, load) for b in sizes]
    why = [campaign.outside(spot) for spot in asked]
    inside = [spot for spot, reason in zip(asked, why, strict=True) if reason is None]
    if not inside:
        return Refusal("extrapolation", f"its table does not reach {why[0]}")
    made: list[Point] = []
    for spot, belief in zip(inside, campaign.tell(inside), strict=True):
        batch = int(spot.batch)
        ran = [t.itl_s for t in timed if (t.batch, t.prompt, t.output) == (batch, load.prompt, load.output)]
        # A table's prompts are computed whole: where part of them is held already, its rows are neighbours only.
        exact = bool(ran) and not load.cached_share
        itl = statistics.median(ran) if exact else belief.seconds
        bound = itl if exact else itl * math.exp(factor * belief.spread)
        ttft = replica_ttft_s(card, s.device, precision, s.layout, load, known, batch, itl)
        if (slo.itl_s is not None and bound > slo.itl_s) or (slo.ttft_s is not None and ttft * first > slo.ttft_s):
            continue
        held = weights_bytes(card, precision, s.layout) + batch * sequence_bytes(card, precision, s.layout, load)
        trust = ErrorClass.MEASURED if exact else ErrorClass.INTERPOLATED
        made.append(Point(batch, itl, ttft, UTILISATION * batch / (load.output * itl), "table", trust, held))
    if not made:
        return Refusal("table", f"none of the {len(inside)} batches that its table reaches keeps its times")
    return max(made, key=lambda p: p.requests_s)
