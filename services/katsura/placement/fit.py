"""Coefficients from measurements: robust least squares on the logarithm of the error.

`katsura calibrate` and `bench/placement.py` hand in points; `cost` uses the result. The only module here, beside the
solver's, that needs numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import Coefficients, ErrorClass, Precision, Terms

_ITERATIONS: Final = 60
_HUBER: Final = 0.15
"""Residuals (natural log) beyond which a point pulls no harder."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured step: its terms, and the seconds it took. `weight` scales its pull."""

    terms: Terms
    precision: Precision
    seconds: float
    batch: float
    context: float
    weight: float = 1.0


def fit(points: Sequence[Point], prior: Coefficients, error_class: ErrorClass, date: str) -> Coefficients:
    """Coefficients >= 0 that explain `points`, drawn towards `prior` as strongly as one point would.

    Raises:
        InvalidArgumentError: no points.
    """
    if not points:
        raise InvalidArgumentError("no measured points to fit; measure this machine or name a table", field="points")
    arithmetics = sorted({p.precision.arithmetic for p in points})
    base = max(arithmetics, key=lambda a: sum(p.precision.arithmetic == a for p in points))
    free = [a for a in arithmetics if a != base]
    x = np.array([astuple(p.terms) for p in points])
    flags = np.array([[float(p.precision.arithmetic == a) for a in free] for p in points]).reshape(len(points), -1)
    target = np.log([p.seconds for p in points])
    weight = np.array([p.weight for p in points])
    theta = _solve(x, flags, target, weight, np.array([max(getattr(prior, f.name), 1e-7) for f in fields(Terms)]))
    scale = np.exp(theta[: x.shape[1]])
    factors = theta[x.shape[1] :]
    residual = target - np.log(x @ scale) - flags @ factors
    found: dict[str, Any] = {f.name: float(value) for f, value in zip(fields(Terms), scale, strict=True)}
    return replace(
        prior,
        **found,
        by_precision=MappingProxyType({a: float(np.exp(v)) for a, v in zip(free, factors, strict=True)}),
        quantile_90=float(np.exp(np.quantile(residual, 0.9))),
        error_class=error_class,
        rows=len(points),
        date=date,
        batch_range=(min(p.batch for p in points), max(p.batch for p in points)),
        context_range=(min(p.context for p in points), max(p.context for p in points)),
    )


def fit_first(
    rows: Sequence[tuple[float, float, float, float]], prior: Coefficients
) -> tuple[float, float, float, float]:
    """`Coefficients.first` from (prefill floor, step, batch, measured seconds to the first token)."""
    x = np.array([(1.0, floor, step, batch * floor) for floor, step, batch, _ in rows])
    target, weight = np.log([measured for *_, measured in rows]), np.ones(len(rows))
    found = np.exp(_solve(x, np.zeros((len(rows), 0)), target, weight, np.maximum(prior.first, 1e-6)))
    return float(found[0]), float(found[1]), float(found[2]), float(found[3])


_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _solve(x: _Array, flags: _Array, target: _Array, weight: _Array, start: _Array) -> _Array:
    """Gauss-Newton on log coefficients, reweighted by Huber; damped by one pseudo-point per coefficient."""
    prior = np.concatenate([np.log(start), np.zeros(flags.shape[1])])
    theta = prior.copy()
    for _ in range(_ITERATIONS):
        parts = x * np.exp(theta[: x.shape[1]])
        total = parts.sum(axis=1)
        residual = target - np.log(total) - flags @ theta[x.shape[1] :]
        jacobian = np.hstack([parts / total[:, None], flags])
        pull = weight * np.minimum(1.0, _HUBER / np.maximum(np.abs(residual), 1e-9))
        normal = (jacobian * pull[:, None]).T @ jacobian + np.eye(len(theta))
        step = np.linalg.solve(normal, (jacobian * pull[:, None]).T @ residual + (prior - theta))
        theta = theta + np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-6:
            break
    return theta
