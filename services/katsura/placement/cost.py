"""What one replica of a model costs per step: a roofline whose terms are weighed by measured coefficients.

One decode step of a replica is a sum of terms (weights and KV read, FLOPs, collectives, launches, its share of
prefill), each in seconds or counts, times a `Coefficients` that `calibrate` fits. `patterns` asks for the largest batch
that keeps the objectives; `bench/placement.py` asks the same functions about measured points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Final

from katsura.domain.errors import OutOfRangeError, Reason
from katsura.placement.card import Block, ModelCard
from katsura.placement.catalogue import Device


class ErrorClass(StrEnum):
    """How far an estimate may be trusted, best first."""

    MEASURED = "measured"
    """Our own engine, on this kind of device (`katsura calibrate`)."""
    INTERPOLATED = "interpolated"
    """Between measured configurations of a table of this model, engine and device (`katsura plan --points`)."""
    EXTENDED = "extended"
    """At most 4x beyond the rows of such a table: the cost model fitted on them, with a wider margin."""
    CALIBRATED = "calibrated"
    """Coefficients fitted on other engines' published measurements, or on other devices of its kind."""
    PRIOR = "prior"
    """Data sheets and priors only."""
    EXTRAPOLATED = "extrapolated"
    """More than 4x beyond the batches or contexts that were seen: given only to who asked for it."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per element of experts, other weights and KV, and the arithmetic they are multiplied in."""

    expert_bytes: float
    weight_bytes: float
    kv_bytes: float
    arithmetic: str = "bf16"


BF16 = Precision(2, 2, 2)
F32 = Precision(4, 4, 4, "f32")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a replica lies over `tensor * data` devices of one kind.

    Attention is cut in `tensor` and copied `data` times; experts are cut over all devices, in `experts` groups
    that hold whole experts each.
    """

    tensor: int = 1
    data: int = 1
    experts: int = 1
    per_node: int = 8

    @property
    def devices(self) -> int:
        """Accelerators of the replica."""
        return self.tensor * self.data


@dataclass(frozen=True, slots=True)
class Terms:
    """What one decode step is made of: seconds at full speed, and counts of layers.

    `prefill` and `prefill_collective` are the step's share of the prompts that replace finished sequences.
    """

    weights: float
    kv: float
    flops: float
    collective: float
    layers: float
    linked_layers: float
    moe_layers: float
    sequences: float
    prefill: float
    prefill_collective: float

    @property
    def decoding(self) -> Terms:
        """The step while no prompt is computed."""
        return replace(self, prefill=0.0, prefill_collective=0.0)


REACH: Final = 4.0
"""How far beyond what was seen a fit answers."""
TERMS: Final = tuple(f.name for f in fields(Terms))


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What each of `Terms` really costs, and on which points that was learned.

    Attributes:
        first: to the first token: fixed seconds, and factors on the prompt's own prefill, on one step, and on the
            prefill of a whole batch (prompts that arrive together wait for each other).
        first_collective: factors on what the prompt itself, and the prompts of a whole batch, send between devices.
        quantile_90: factor over the prediction below which nine of ten measured points lay.
        rows, date: how many points, and when.
        batch_range, context_range: what the points covered.
        extrapolate: whether estimates more than 4x beyond these are given, and marked, instead of refused.
    """

    weights: float = 1.27
    kv: float = 1.27
    flops: float = 1.5
    collective: float = 1.5
    layers: float = 66e-6
    linked_layers: float = 42e-6
    moe_layers: float = 2e-5
    sequences: float = 1e-5
    prefill: float = 2.35
    prefill_collective: float = 1.5
    first: tuple[float, float, float, float] = (0.02, 2.35, 1.0, 0.05)
    first_collective: tuple[float, float] = (2.0, 0.05)
    quantile_90: float = 1.6
    error_class: ErrorClass = ErrorClass.PRIOR
    rows: int = 0
    date: str = ""
    batch_range: tuple[float, float] = (1, 512)
    context_range: tuple[float, float] = (64, 65536)
    extrapolate: bool = False

    def step_s(self, terms: Terms) -> float:
        """Seconds of one decode step."""
        total: float = sum(getattr(self, name) * getattr(terms, name) for name in TERMS)
        return total

    def first_s(self, prefill_floor: float, prefill_ring: float, step: float, batch: float) -> float:
        """Seconds to the first token of a prompt that finds a place in a batch of `batch`."""
        fixed, own, steps, burst = self.first
        ring, rings = self.first_collective
        return fixed + (own + burst * batch) * prefill_floor + (ring + rings * batch) * prefill_ring + steps * step

    @property
    def batches(self) -> tuple[float, float]:
        """The smallest and the largest batch that is answered for."""
        return (1, math.inf) if self.extrapolate else (self.batch_range[0] / REACH, self.batch_range[1] * REACH)

    def beyond(self, context: float) -> str | None:
        """Why nothing is said about a context of so many tokens; None where something is."""
        low, high = self.context_range
        if self.extrapolate or low / REACH <= context <= high * REACH:
            return None
        return (
            f"contexts of {context:.0f} tokens; known for {low:.0f} to {high:.0f}, answered up to {REACH:g}x beyond: "
            "measure it (katsura calibrate) or accept a guess (katsura plan --extrapolate)"
        )

    def trust(self, batch: float, context: float) -> ErrorClass:
        """The error class of an estimate at this batch and context.

        Raises:
            OutOfRangeError: it would be extrapolated, and that was not asked for.
        """
        smallest, largest = self.batches
        why = self.beyond(context)
        if why is None and not smallest <= batch <= largest:
            why = f"a batch of {batch:g}; answered for {smallest:g} to {largest:g}"
        if why is not None:
            raise OutOfRangeError(f"no estimate for {why}", reason=Reason.INVALID_FIELD, field="calibration")
        ranges = ((batch, self.batch_range), (context, self.context_range))
        far = any(not low / REACH <= value <= high * REACH for value, (low, high) in ranges)
        return ErrorClass.EXTRAPOLATED if far else self.error_class


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of request: tokens of its prompt and answer, and the part of the prompt whose KV is held already."""

    prompt: int
    output: int
    cached_share: float = 0.0

    @property
    def new_prompt(self) -> int:
        """Prompt tokens that are computed."""
        return max(1, round(self.prompt * (1 - self.cached_share)))

    @property
    def context(self) -> float:
        """Tokens that a decode step sees, on average."""
        return self.prompt + self.output / 2


def decode_terms(
    card: ModelCard, device: Device, precision: Precision, layout: Layout, batch: float, load: Load
) -> Terms:
    """The terms of one step with `batch` sequences on the replica (placement.md 3.1, 3.5)."""
    g, local = layout.devices, batch / layout.data
    weight_bytes = kv_bytes = flops = 0.0
    for block in card.blocks:
        weight_bytes += block.count * _weight_bytes(block, precision, layout, batch)
        kv_bytes += block.count * _kv_bytes(block, precision, layout, local, load.context)
        flops += block.count * _flops(block, layout, batch, load.context)
    weight_bytes += card.hidden * card.vocabulary * precision.weight_bytes / layout.tensor
    flops += 2 * local * card.hidden * card.vocabulary / layout.tensor
    rate = device.flops(precision.arithmetic)
    memory = device.memory_bytes_s
    return Terms(
        weights=weight_bytes / memory,
        kv=kv_bytes / memory,
        flops=flops / rate,
        collective=local * _ring_s(card, device, layout),
        layers=card.layers,
        linked_layers=card.layers if g > 1 else 0,
        moe_layers=card.moe_layers,
        sequences=local,
        prefill=batch / load.output * prefill_floor_s(card, device, precision, layout, load),
        prefill_collective=local / load.output * prefill_ring_s(card, device, layout, load),
    )


def _weight_bytes(block: Block, precision: Precision, layout: Layout, batch: float) -> float:
    g, ffn = layout.devices, block.ffn
    dense = (block.attention.parameters + block.norms) / layout.tensor + ffn.dense / layout.tensor
    if not ffn.experts:
        return dense * precision.weight_bytes
    groups = layout.experts
    here = ffn.active_experts(batch) / groups
    return dense * precision.weight_bytes + here * ffn.expert_parameters * groups / g * precision.expert_bytes


def _kv_bytes(block: Block, precision: Precision, layout: Layout, local: float, context: float) -> float:
    attention = block.attention
    shards = min(layout.tensor, attention.kv_shards)
    state = 2 * 2 * attention.state_elements  # read and written, 2 bytes each
    return local * (attention.kept(context) * attention.kv_elements * precision.kv_bytes + state) / shards


def _flops(block: Block, layout: Layout, batch: float, context: float) -> float:
    attention, ffn, local = block.attention, block.ffn, batch / layout.data
    own = 2 * local * (attention.parameters + ffn.dense) / layout.tensor
    scores = 2 * local * attention.score_width * attention.kept(context) / layout.tensor
    return own + scores + 2 * batch * ffn.per_token * ffn.expert_parameters / layout.devices


def prefill_floor_s(card: ModelCard, device: Device, precision: Precision, layout: Layout, load: Load) -> float:
    """Seconds of one prompt at full speed on the replica's devices: FLOPs, or one reading of the weights."""
    flops = card.prefill_flops(load.prompt, load.prompt - load.new_prompt) / layout.devices
    return flops / device.flops(precision.arithmetic)


def prefill_ring_s(card: ModelCard, device: Device, layout: Layout, load: Load) -> float:
    """Seconds at full speed that one prompt spends between the replica's devices; 0 on one device."""
    return load.new_prompt * _ring_s(card, device, layout)


def _ring_s(card: ModelCard, device: Device, layout: Layout) -> float:
    """Per token: ring all-reduce after attention and after FFN (an all-to-all where attention is data parallel)."""
    g = layout.devices
    if g == 1:
        return 0.0
    link = device.intra_bytes_s if g <= layout.per_node else device.inter_bytes_s
    return 2 * card.layers * 2 * card.hidden * 2 * (g - 1) / g / link


def weights_bytes(card: ModelCard, precision: Precision, layout: Layout) -> float:
    """Weights that one device of the replica holds."""
    experts = card.expert_parameters * precision.expert_bytes / layout.devices
    rest = card.parameters - card.expert_parameters
    return experts + rest * precision.weight_bytes / layout.tensor


def sequence_bytes(card: ModelCard, precision: Precision, layout: Layout, load: Load) -> float:
    """KV and state bytes that one running sequence takes on one device, at its longest."""
    total = 0.0
    for block in card.blocks:
        attention = block.attention
        kept = attention.kept(load.prompt + load.output) * attention.kv_elements * precision.kv_bytes
        total += block.count * (kept + 2 * attention.state_elements) / min(layout.tensor, attention.kv_shards)
    return total


def batch_limit(card: ModelCard, device: Device, precision: Precision, layout: Layout, load: Load) -> float:
    """Sequences whose KV fits beside the weights; 0 or less where the weights alone do not."""
    free = device.usable_bytes - weights_bytes(card, precision, layout)
    return layout.data * free / sequence_bytes(card, precision, layout, load)
