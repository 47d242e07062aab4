"""Rows that tell the linear relaxation that instances come whole: its bound rises close to the integer program's own.

A demand row sum a z + w >= 1 over whole z >= 0, divided by t, may be rounded (mixed-integer rounding, Nemhauser and
Wolsey 1990): with b = 1/t and f its fraction, sum (floor(a/t) + min(frac(a/t), f) / f) z + w / (t f) >= ceil(b). The
divisors worth trying are the rates of the columns themselves. `search` adds these rows to a relaxation only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from katsura.placement.highs import Program
from katsura.placement.patterns import Column
from katsura.placement.problem import Problem
from katsura.placement.program import Built, unmet

_SHARE_MIN: Final = 1 / 60
"""Part of a demand below which a column is too fine for its rounding to matter."""
_FRACTION_MIN: Final = 0.01
"""Fractions below which a row divides by nearly nothing."""


def round_demands(problem: Problem, columns: Sequence[Column], built: Built) -> None:
    """Add the rounded demand rows of every service to `built.program`."""
    mine: dict[str, list[int]] = defaultdict(list)
    for i, column in enumerate(columns):
        mine[column.service].append(i)
    for service in problem.services:
        if service.requests_s <= 0:
            continue
        shares = {built.z[i]: columns[i].requests_s / service.requests_s for i in mine[service.name]}
        for divisor in sorted({round(min(1.0, share), 9) for share in shares.values()}, reverse=True):
            if divisor > _SHARE_MIN:
                _round(built.program, f"rounded:{service.name}", shares, unmet(service, built.w), divisor)


def _round(program: Program, name: str, shares: dict[int, float], unmet: dict[int, float], divisor: float) -> None:
    whole = 1 / divisor
    fraction = whole - math.floor(whole + 1e-9)
    if fraction < _FRACTION_MIN:
        return
    terms = {i: part * whole / fraction for i, part in unmet.items()}
    for i, share in shares.items():
        floor = math.floor(share * whole + 1e-9)
        terms[i] = floor + min(max(0.0, share * whole - floor), fraction) / fraction
    program.row(f"{name}/{divisor:g}", terms, low=math.floor(whole + 1e-9) + 1)
