"""Coefficients from measurements: robust least squares on the logarithm of the error.

`katsura calibrate` and `bench/placement.py` hand in points; `cost` uses the result, `trials` the beliefs. The only
module here, beside the solver's, that needs numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Final

import numpy as np

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import Coefficients, ErrorClass, Terms

_ITERATIONS: Final = 60
_HUBER: Final = 0.15
"""Residuals (natural log) beyond which a point pulls no harder."""
_FEW_PULL: Final = 0.1
"""Points that the prior of one coefficient is worth to a few points of one service: engines and models differ more
from each other than the sizes of one of them do."""
SCATTER: Final = 0.12
"""Spread (natural log) that a step keeps when its coefficients are known: with it nine of ten training rows of
`bench/placement.py` lay below the 90 % bound after five points."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured step: its terms, and the seconds it took. `weight` scales its pull."""

    terms: Terms
    seconds: float
    batch: float
    context: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Belief:
    """What a step is thought to last, and the spread of the logarithm of that."""

    seconds: float
    spread: float


def fit(
    points: Sequence[Point], prior: Coefficients, error_class: ErrorClass, date: str, pull: float = 1.0
) -> Coefficients:
    """Coefficients >= 0 that explain `points`, each drawn towards `prior` as strongly as `pull` points would.

    Raises:
        InvalidArgumentError: no points.
    """
    if not points:
        raise InvalidArgumentError("no measured points to fit; measure this machine or name a table", field="points")
    x = np.array([astuple(p.terms) for p in points])
    target = np.log([p.seconds for p in points])
    theta, _ = _solve(x, target, np.array([p.weight for p in points]), _start(prior), pull)
    residual = target - np.log(x @ np.exp(theta))
    found: dict[str, Any] = {f.name: float(value) for f, value in zip(fields(Terms), np.exp(theta), strict=True)}
    return replace(
        prior,
        **found,
        quantile_90=float(np.exp(np.quantile(residual, 0.9))),
        error_class=error_class,
        rows=len(points),
        date=date,
        batch_range=(min(p.batch for p in points), max(p.batch for p in points)),
        context_range=(min(p.context for p in points), max(p.context for p in points)),
    )


@dataclass(frozen=True, slots=True)
class First:
    """One measured time to the first token: the prompt's prefill and its time between devices at full speed, one step
    of the batch that it joins, and the seconds it took."""

    floor: float
    ring: float
    step: float
    batch: float
    seconds: float


def fit_first(points: Sequence[First], prior: Coefficients) -> Coefficients:
    """`prior` with `first` and `first_collective` that explain `points`."""
    x = np.array([(1.0, p.floor, p.step, p.batch * p.floor, p.ring, p.batch * p.ring) for p in points])
    start = np.maximum((*prior.first, *prior.first_collective), 1e-6)
    theta, _ = _solve(x, np.log([p.seconds for p in points]), np.ones(len(points)), start)
    fixed, own, steps, burst, ring, rings = (float(v) for v in np.exp(theta))
    return replace(prior, first=(fixed, own, steps, burst), first_collective=(ring, rings))


def believe(points: Sequence[Point], prior: Coefficients, asked: Sequence[Terms]) -> list[Belief]:
    """What `asked` steps last, once a few `points` of the same service on the same engine and device are known.

    The posterior of the coefficients' logarithms around `prior`, linearised (Laplace); without points it is the prior.
    """
    start = _start(prior)
    x = np.array([astuple(p.terms) for p in points]).reshape(len(points), len(start))
    target, weight = np.log([p.seconds for p in points]), np.array([p.weight for p in points])
    theta, normal = _solve(x, target, weight, start, _FEW_PULL)
    parts = np.array([astuple(terms) for terms in asked]).reshape(len(asked), len(start)) * np.exp(theta)
    total = parts.sum(axis=1)
    shares = parts / total[:, None]
    spread = SCATTER * np.sqrt(1 + np.einsum("ij,jk,ik->i", shares, np.linalg.inv(normal), shares))
    return [Belief(float(seconds), float(s)) for seconds, s in zip(total, spread, strict=True)]


_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _start(prior: Coefficients) -> _Array:
    return np.array([max(getattr(prior, f.name), 1e-7) for f in fields(Terms)])


def _solve(x: _Array, target: _Array, weight: _Array, start: _Array, pull: float = 1.0) -> tuple[_Array, _Array]:
    """Gauss-Newton on log coefficients, reweighted by Huber; `start` weighs as much as `pull` points per coefficient.

    Returns the logarithms and their normal matrix.
    """
    prior, damping = np.log(start), pull * np.eye(len(start))
    theta = prior.copy()
    for _ in range(_ITERATIONS):
        parts = x * np.exp(theta)
        total = parts.sum(axis=1)
        residual = target - np.log(total)
        jacobian = parts / total[:, None]
        drawn = weight * np.minimum(1.0, _HUBER / np.maximum(np.abs(residual), 1e-9))
        normal = (jacobian * drawn[:, None]).T @ jacobian + damping
        step = np.linalg.solve(normal, (jacobian * drawn[:, None]).T @ residual + damping @ (prior - theta))
        theta = theta + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return theta, normal
