"""The largest batch that keeps the objectives: where a replica or a pool would run, and what stops it there.

`patterns` asks this about every instance shape. The steady state follows Little's law: a batch of B answers of O tokens
at one step time is B / (O x step) requests per second; the step already carries its share of prefill.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from katsura.placement.card import ModelCard
from katsura.placement.catalogue import Device
from katsura.placement.cost import (
    Coefficients,
    ErrorClass,
    Layout,
    Load,
    Precision,
    batch_limit,
    decode_terms,
    prefill_floor_s,
    prefill_ring_s,
    sequence_bytes,
    weights_bytes,
)

UTILISATION: Final = 0.85
"""Part of its capacity that an instance is planned for; the rest absorbs bursts."""
_STEPS: Final = tuple(sorted({round(2 ** (i / 3)) for i in range(40)}))
"""Batches that are tried: 1 to 8192, three per octave."""


def batches(limit: float) -> tuple[int, ...]:
    """Batches up to `limit` that are tried."""
    return tuple(batch for batch in _STEPS if batch <= limit)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must get; None: whatever comes. Mean time between tokens, and to the first one, in seconds."""

    itl_s: float | None = None
    ttft_s: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """Where an instance runs.

    Attributes:
        batch: sequences at once. itl_s, ttft_s: predicted (median), with the batch full; fewer sequences are faster.
        requests_s: planned requests per second, `UTILISATION` included.
        limit: what stops the batch (`itl`, `ttft`, `kv`, `batch`; `table`, `trial`: what was measured).
        memory_bytes: weights and KV of one device at this batch.
        link_bytes_s: what crosses between attention and experts, each way together.
        stages: layers of each stage of a pipeline, in the order of its members.
        margin: nine of ten times between tokens are thought to lie below `margin * itl_s`, where a table says so.
    """

    batch: int
    itl_s: float
    ttft_s: float
    requests_s: float
    limit: str
    error_class: ErrorClass
    memory_bytes: float
    expert_memory_bytes: float = 0.0
    link_bytes_s: float = 0.0
    micro_batches: int = 1
    stages: tuple[int, ...] = ()
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a shape cannot serve, or is not said to: `detail` says in words what `reason` names.

    Reasons are `memory`, `itl`, `ttft`, `table` and `extrapolation`.
    """

    reason: str
    detail: str


def wait_s(servers: float, service_s: float, utilisation: float = UTILISATION) -> float:
    """Mean wait for one of `servers` places held `service_s` each (Sakasegawa's M/M/c approximation, 1977)."""
    power = math.sqrt(2 * (servers + 1)) - 1
    return service_s * math.pow(utilisation, power) / (servers * (1 - utilisation))


def largest_batch(
    limit: float, slo: Slo, margin: float, evaluate: Callable[[int], tuple[float, float]]
) -> tuple[int, float, float, str] | Refusal:
    """The largest batch <= `limit` whose (ITL, TTFT) times `margin` keep `slo`, with what stopped it.

    Args:
        evaluate: batch -> (ITL, TTFT) in seconds; ITL grows with the batch.
    """
    steps = batches(limit)
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        if slo.itl_s is None or evaluate(steps[middle])[0] * margin <= slo.itl_s:
            low = middle + 1
        else:
            high = middle
    if not low:
        shown = evaluate(steps[0])[0] * margin * 1e3
        return Refusal("itl", f"{shown:.0f} ms between tokens at batch 1, {_ms(slo.itl_s)} allowed")
    stopped = "itl" if low < len(steps) else "kv"
    for batch in reversed(steps[:low]):
        itl, ttft = evaluate(batch)
        if slo.ttft_s is None or ttft * margin <= slo.ttft_s:
            return batch, itl, ttft, stopped
        stopped = "ttft"
    return Refusal("ttft", f"{ttft * margin * 1e3:.0f} ms to the first token, {_ms(slo.ttft_s)} allowed")


def too_small(batch: float, smallest: float) -> Refusal:
    """Its times allow only batches that nobody measured anything like."""
    return Refusal("extrapolation", f"its times allow a batch of {batch:g}, answered from {smallest:g} on")


def _ms(seconds: float | None) -> str:
    return "any" if seconds is None else f"{seconds * 1e3:.0f} ms"


def batch_allowed(
    card: ModelCard, precision: Precision, load: Load, coefficients: Coefficients, most: int, kv_bytes: int | None
) -> int:
    """The largest batch that is answered for and that an arena of `kv_bytes` holds, at most `most`."""
    if kv_bytes is not None:
        most = max(1, min(most, int(kv_bytes / sequence_bytes(card, precision, Layout(), load))))
    return int(min(most, coefficients.batches[1]))


def replica_ttft_s(
    card: ModelCard,
    device: Device,
    precision: Precision,
    layout: Layout,
    load: Load,
    coefficients: Coefficients,
    batch: int,
    itl_s: float,
) -> float:
    """Seconds to the first token on a replica whose steps last `itl_s`, the wait for a place included."""
    floor = prefill_floor_s(card, device, precision, layout, load)
    ring = prefill_ring_s(card, device, layout, load)
    return coefficients.first_s(floor, ring, itl_s, batch) + wait_s(batch, load.output * itl_s)


def replica_point(
    card: ModelCard,
    device: Device,
    precision: Precision,
    layout: Layout,
    load: Load,
    slo: Slo,
    coefficients: Coefficients,
    margin: float,
    batch_max: int = 1024,
    kv_bytes: int | None = None,
) -> Point | Refusal:
    """Where a whole model on `layout.devices` devices runs, or why it cannot. `kv_bytes` bounds its whole arena."""
    if (why := coefficients.beyond(load.context)) is not None:
        return Refusal("extrapolation", why)
    held = weights_bytes(card, precision, layout)
    fits = batch_limit(card, device, precision, layout, load)
    if fits < 1:
        need = held + sequence_bytes(card, precision, layout, load)
        return Refusal("memory", f"needs {need / 2**30:.1f} GiB per device, {device.usable_bytes / 2**30:.1f} usable")

    smallest = coefficients.batches[0]
    batch_max = batch_allowed(card, precision, load, coefficients, batch_max, kv_bytes)

    def evaluate(batch: int) -> tuple[float, float]:
        itl = coefficients.step_s(decode_terms(card, device, precision, layout, batch, load))
        return itl, replica_ttft_s(card, device, precision, layout, load, coefficients, batch, itl)

    found = largest_batch(min(fits, batch_max), slo, margin, evaluate)
    if isinstance(found, Refusal):
        return found
    batch, itl, ttft, stopped = found
    if batch < smallest:
        return too_small(batch, smallest)
    return Point(
        batch=batch,
        itl_s=itl,
        ttft_s=ttft,
        requests_s=UTILISATION * batch / (load.output * itl),
        limit="batch" if stopped == "kv" and fits >= batch_max else stopped,
        error_class=coefficients.trust(batch, load.context),
        memory_bytes=held + batch * sequence_bytes(card, precision, layout, load) / layout.data,
    )
