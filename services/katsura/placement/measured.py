"""Measurements of a running deployment as coefficients of its device.

`katsura calibrate` makes or reads the measurements; `calibration` keeps what comes out.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.card import ModelCard
from katsura.placement.catalogue import Device
from katsura.placement.cost import (
    TERMS,
    Coefficients,
    ErrorClass,
    Layout,
    Load,
    Precision,
    decode_terms,
    prefill_floor_s,
    prefill_ring_s,
)
from katsura.placement.fit import First, Point, fit, fit_first

_COLUMNS = ("batch", "prompt", "output", "itl_ms", "ttft_ms")
POINTS_MIN = 4
_PULL = 0.1
"""Points that each coefficient of the prior is worth beside a few measurements of this very machine."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """`batch` requests at once, each of `prompt` tokens answered by `output`; medians in seconds."""

    batch: int
    prompt: int
    output: int
    itl_s: float
    ttft_s: float


def read_table(text: str) -> tuple[Measurement, ...]:
    """Measurements from CSV with the columns batch, prompt, output, itl_ms, ttft_ms.

    Raises:
        InvalidArgumentError: a column or a number is missing.
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidArgumentError(
            f"the table lacks {', '.join(missing)}; its first line names the columns {', '.join(_COLUMNS)}",
            field="table",
        )
    made = []
    for entry in reader:
        try:
            batch, prompt, output, itl, ttft = (float(entry[name]) for name in _COLUMNS)
            if not all(0 < value < math.inf for value in (batch, prompt, output, itl, ttft)):
                raise ValueError
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"line {reader.line_num}: expected {len(_COLUMNS)} numbers above 0 ({', '.join(_COLUMNS)})",
                field="table",
            ) from error
        made.append(Measurement(int(batch), int(prompt), int(output), itl / 1e3, ttft / 1e3))
    return tuple(made)


def learn(
    measurements: Sequence[Measurement],
    card: ModelCard,
    device: Device,
    precision: Precision,
    layout: Layout,
    prior: Coefficients,
    date: str,
) -> Coefficients:
    """Coefficients of `device` as measured, drawn to `prior` where the measurements say little.

    Raises:
        InvalidArgumentError: fewer than `POINTS_MIN` measurements.
    """
    if len(measurements) < POINTS_MIN:
        raise InvalidArgumentError(
            f"{len(measurements)} measurements cannot tell memory from arithmetic; give at least {POINTS_MIN}, of "
            "several batches and prompts",
            field="table",
        )
    points, first = [], []
    for m in measurements:
        load = Load(m.prompt, m.output)
        terms = decode_terms(card, device, precision, layout, m.batch, load)
        # All requests begin together: their prefill is over when the tokens that are timed begin.
        points.append(Point(terms.decoding, m.itl_s, m.batch, load.context))
    # A machine is first of all faster or slower than its prior as a whole: few points tell that better than any part.
    whole = math.exp(statistics.median(math.log(p.seconds / prior.step_s(p.terms)) for p in points))
    scaled = replace(prior, **{name: whole * getattr(prior, name) for name in TERMS})
    found = fit(points, scaled, ErrorClass.MEASURED, date, _PULL)
    for m, point in zip(measurements, points, strict=True):
        load = Load(m.prompt, m.output)
        floor = prefill_floor_s(card, device, precision, layout, load)
        ring = prefill_ring_s(card, device, layout, load)
        first.append(First(floor, ring, found.step_s(point.terms), m.batch, m.ttft_s))
    found = fit_first(first, found)
    return replace(found, prefill=max(found.prefill, found.first[1]))
