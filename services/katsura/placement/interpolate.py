"""Steps near measured ones: what a table of one campaign says of configurations that it does not hold.

A campaign is one model on one kind of device, by one version of one engine, in one precision. Its measurements first
move the coefficients (`fit.believe`); what they still miss is alike where sizes are alike, and is interpolated:

    ln t(x) = ln roofline(x) + g(x) + noise,   g a Gaussian process with covariance RESIDUAL^2 exp(-distance)

(Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, equations 2.25 and 2.26; the distance is of
logarithms, each over the length at which residuals lose touch). The lengths and spreads were chosen by five-fold
cross-validation on the training rows of `bench/placement.py`. Beyond the rows g fades and what is left is the roofline
that they fitted: median errors are 6 % (17 % for numbers of devices that no row is of) instead of 2 %, so margins are
wider there, and nothing is said more than 4x beyond. `tables` reads tables and plans by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from katsura.placement.cost import REACH, Coefficients, Layout, Load, Terms
from katsura.placement.fit import Belief, Point, believe

_RESIDUAL: Final = 0.22
_NOISE: Final = 0.03
"""Spreads (natural log) of what the roofline misses, and of one measurement when it is repeated."""
_BATCH: Final = 5.0
_LOAD: Final = 2.0
_CUT: Final = 8.0
"""Lengths: of logarithms of batch, and of prompt and answer; of doublings of a layout."""
_FOLDS: Final = 5
_JUDGED_MIN: Final = 10
"""Rows that cross-validation must have answered before its margin counts."""
_NORMAL_90: Final = 1.2816
"""Standard deviations that nine of ten draws of a normal stay below."""
_BEYOND: Final = 2.0
"""Spreads that a prediction beyond the rows is held with at least: nine of ten training rows that lay beyond the rest
of their table stayed below 1.7, and choices were best with 2."""
_TOLERANCE: Final = 1.05
"""What the measured time may exceed a limit by and count as kept (placement.md 7.3)."""

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Spot:
    """One configuration: its layout, its load and `batch` requests at once; `terms` of one step of it."""

    layout: Layout
    load: Load
    batch: float
    terms: Terms


@dataclass(frozen=True, slots=True)
class Judged:
    """How well a campaign foretells its own rows, each left out with a fifth of the others.

    Attributes:
        rows: that were answered; the rest lay outside of what was left. median: absolute error of these.
        factor: nine of ten measured times lay below the prediction times exp(factor x spread).
    """

    rows: int
    median: float
    factor: float


@dataclass(frozen=True, slots=True)
class Told:
    """What a campaign says of one step: the median; nine of ten last less than `margin` times as long. `between`: its
    rows reach it; else it lies beyond them."""

    seconds: float
    margin: float
    between: bool

    @property
    def held_s(self) -> float:
        """What a limit is compared with: the median must keep it, and nine of ten with 5 % of tolerance."""
        return max(self.seconds, self.seconds * self.margin / _TOLERANCE)


@dataclass(frozen=True, slots=True)
class Campaign:
    """Measured steps of one campaign: `seconds` of each of `spots`, over a roofline that begins with `prior`."""

    spots: tuple[Spot, ...]
    seconds: tuple[float, ...]
    prior: Coefficients

    def outside(self, spot: Spot) -> str | None:
        """Why `spot` does not lie between the rows of its layout; None where it does."""
        mine = [s for s in self.spots if s.layout == spot.layout]
        return _missed(spot, mine, 1.0) if mine else f"{spot.layout.devices} devices; no row is of them"

    def too_far(self, spot: Spot) -> str | None:
        """Why nothing is said of `spot`: how far it lies beyond all rows; None where something is."""
        return _missed(spot, self.spots, REACH) if self.spots else "any size that is planned"

    def foretell(self, asked: Sequence[Spot]) -> list[Told]:
        """What is said of each step, with the margin of its place. Meant for spots that are not `too_far`."""
        factor, made = self.judged().factor, []
        for spot, belief in zip(asked, self.tell(asked) if asked else (), strict=True):
            between = self.outside(spot) is None
            spreads = factor if between else max(factor, _BEYOND)
            made.append(Told(belief.seconds, math.exp(spreads * belief.spread), between))
        return made

    def tell(self, asked: Sequence[Spot]) -> list[Belief]:
        """The median of each step, and its spread."""
        points = [Point(s.terms, t, s.batch, s.load.context) for s, t in zip(self.spots, self.seconds, strict=True)]
        first = believe(points, self.prior, [s.terms for s in (*self.spots, *asked)])
        thought = np.log([b.seconds for b in first])
        known = len(self.spots)
        residual = np.log(self.seconds) - thought[:known]
        across = _covariance(asked, self.spots)
        own = _covariance(self.spots, self.spots) + _NOISE**2 * np.eye(known)
        weights = np.linalg.solve(own, across.T).T
        left = _RESIDUAL**2 + _NOISE**2 - np.einsum("ij,ij->i", weights, across)
        median = np.exp(thought[known:] + weights @ residual)
        return [Belief(float(m), math.sqrt(max(v, _NOISE**2))) for m, v in zip(median, left, strict=True)]

    def judged(self) -> Judged:
        """Cross-validated in five folds; rows of one configuration are left out together."""
        return _judged(self)

    def _only(self, rows: Sequence[int]) -> Campaign:
        return Campaign(tuple(self.spots[i] for i in rows), tuple(self.seconds[i] for i in rows), self.prior)


@lru_cache(maxsize=32)
def _judged(campaign: Campaign) -> Judged:
    number = {key: i for i, key in enumerate(dict.fromkeys((s.layout, s.load, s.batch) for s in campaign.spots))}
    folds = [number[s.layout, s.load, s.batch] % _FOLDS for s in campaign.spots]
    misses: list[tuple[float, float]] = []
    for fold in range(_FOLDS):
        rest = campaign._only([i for i, f in enumerate(folds) if f != fold])
        asked = [i for i, f in enumerate(folds) if f == fold and rest.outside(campaign.spots[i]) is None]
        for i, b in zip(asked, rest.tell([campaign.spots[i] for i in asked]) if asked else (), strict=True):
            misses.append((math.log(campaign.seconds[i] / b.seconds), b.spread))
    median = float(np.median([abs(math.expm1(-miss)) for miss, _ in misses])) if misses else 0.0
    if len(misses) < _JUDGED_MIN:
        return Judged(len(misses), median, _NORMAL_90)
    factor = float(np.quantile([miss / spread for miss, spread in misses], 0.9))
    return Judged(len(misses), median, max(factor, 0.0))


def _missed(spot: Spot, rows: Sequence[Spot], reach: float) -> str | None:
    """What of `spot` lies more than `reach` times beyond `rows`."""
    sizes: dict[str, tuple[float, list[float]]] = {
        "devices": (spot.layout.devices, [s.layout.devices for s in rows]),
        "prompts": (spot.load.prompt, [s.load.prompt for s in rows]),
        "answers": (spot.load.output, [s.load.output for s in rows]),
        "batches": (spot.batch, [s.batch for s in rows]),
    }
    for what, (asked, measured) in sizes.items():
        low, high = min(measured), max(measured)
        if not low / reach <= asked <= high * reach:
            return f"{what} of {asked:g}; measured were {low:g} to {high:g}"
    return None


def _covariance(some: Sequence[Spot], others: Sequence[Spot]) -> _Array:
    a, b = _at(some), _at(others)
    covariance: _Array = _RESIDUAL**2 * np.exp(-np.abs(a[:, None, :] - b[None, :, :]).sum(axis=2))
    return covariance


def _at(spots: Sequence[Spot]) -> _Array:
    return np.array(
        [
            (
                math.log(s.batch) / _BATCH,
                math.log(s.load.prompt) / _LOAD,
                math.log(s.load.output) / _LOAD,
                *(math.log2(n) / _CUT for n in (s.layout.tensor, s.layout.data, s.layout.experts)),
            )
            for s in spots
        ]
    )
