"""What a table of measurements of the same engine, model and device is worth to a choice: rows left out, not models.

The fit of all training rows and the posterior of a group's own (`fit.believe`) leave residuals that are alike where
layout, batch, load, engine version and precisions are: a Gaussian process over them gives every unseen row a median and
a spread. A choice then weighs what a configuration would give by how likely it keeps the limit. Lengths, spreads and
the weight were chosen by five-fold cross-validation on training rows; no held or pledged row was looked at for them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from placing.points import Row
from placing.prediction import GRACE, Decision, Fits

from katsura.placement.fit import Belief, believe

Array = NDArray[np.float64]
ALIKE, SAME, ENGINE, NOISE = 0.1, 0.2, 0.02, 0.03
"""Spreads (natural log): of neighbours, of those with one version and its precisions, of these as a whole, of a run."""
LENGTHS = (5.0, 2.0, 8.0)
"""Distances at which residuals lose touch: of the logarithm of batch, of load, and of the doublings of a layout."""
WARY = 2.0
"""Power of the chance to keep the limit in what a choice is worth."""


def tell(seen: Sequence[Row], asked: Sequence[Row], fits: Fits) -> dict[str, Belief]:
    """What is thought of each of `asked`, by its id, once `seen` are known."""
    known, wanted = _by_group(seen), _by_group(asked)
    return {r.id: b for g, mine in wanted.items() for r, b in zip(mine, _tell(known[g], mine, fits), strict=True)}


def _by_group(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    made: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for r in rows:
        made[r.group].append(r)
    return made


def _tell(seen: Sequence[Row], asked: Sequence[Row], fits: Fits) -> list[Belief]:
    first = believe([r.point for r in seen], fits.of(asked[0]), [r.point.terms for r in (*seen, *asked)])
    if not seen:
        return first
    thought = np.log([b.seconds for b in first])
    residual = np.log([r.point.seconds for r in seen]) - thought[: len(seen)]
    across = _covariance(asked, seen)
    weights = np.linalg.solve(_covariance(seen, seen) + NOISE**2 * np.eye(len(seen)), across.T).T
    left = ALIKE**2 + SAME**2 + ENGINE**2 + NOISE**2 - np.einsum("ij,ij->i", weights, across)
    median = np.exp(thought[len(seen) :] + weights @ residual)
    return [Belief(float(m), math.sqrt(max(v, 1e-6))) for m, v in zip(median, left, strict=True)]


def _covariance(some: Sequence[Row], others: Sequence[Row]) -> Array:
    a, b = _at(some), _at(others)
    near = np.exp(-np.abs(a[:, None, :] - b[None, :, :]).sum(axis=2))
    same = np.array([[r.version == o.version and r.modes == o.modes for o in others] for r in some])
    covariance: Array = near * (ALIKE**2 + SAME**2 * same) + ENGINE**2 * same
    return covariance


def _at(rows: Sequence[Row]) -> Array:
    batch, load, doublings = LENGTHS
    sizes = [
        [
            math.log(r.batch) / batch,
            math.log(r.load.prompt) / load,
            math.log(r.load.output) / load,
            *(math.log2(n) / doublings for n in (r.layout.tensor, r.layout.data, r.layout.experts)),
        ]
        for r in rows
    ]
    return np.array(sizes)


def choose_warily(made: Sequence[Decision], told: Mapping[str, Belief]) -> list[tuple[Row, float]]:
    """The pick of each decision, and its score."""

    def worth(r: Row, limit_s: float) -> float:
        b = told[r.id]
        chance = _student(math.log(limit_s * GRACE / b.seconds) / b.spread)
        return r.batch / b.seconds / r.devices * chance**WARY

    picks = [max(d.rows, key=lambda r: worth(r, d.limit_s)) for d in made]
    return [(r, d.score(r)) for d, r in zip(made, picks, strict=True)]


def _student(z: float) -> float:
    """Distribution function of Student's t with three degrees of freedom: errors have heavier tails than a normal."""
    t = z / math.sqrt(3)
    return 0.5 + (t / (1 + t * t) + math.atan(t)) / math.pi
