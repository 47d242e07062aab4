"""Prefill and decode on replicas of their own: prompts are computed on one kind, their KV moves, answers are drawn on
the other.

Decode no longer pays for prompts, and each side may run on what suits it; the price is the KV of every prompt on the
wire, and a ratio of the two that must fit the load (Splitwise, arXiv 2311.18677; DistServe, 2401.09670). `patterns`
calls `pair_point`. Our own engine does not run pairs yet, so they are planned only where a caller asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    sequence_bytes,
    weights_bytes,
)
from katsura.placement.operate import UTILISATION, Point, Refusal, Slo, largest_batch, too_small, wait_s


@dataclass(frozen=True, slots=True)
class Half:
    """`replicas` of one side, each on `layout` of one kind of device, with what was measured on it."""

    device: Device
    layout: Layout
    replicas: int
    coefficients: Coefficients


def prompt_s(card: ModelCard, precision: Precision, half: Half, load: Load) -> float:
    """Seconds of one prompt alone on one replica: what it adds to a step, over the tokens of an answer."""
    terms = decode_terms(card, half.device, precision, half.layout, 1, load)
    c = half.coefficients
    return load.output * (c.step_s(terms) - c.step_s(terms.decoding))


def decode_s(card: ModelCard, precision: Precision, half: Half, batch: float, load: Load) -> float:
    """Seconds of one decode step of one replica that computes no prompts."""
    terms = decode_terms(card, half.device, precision, half.layout, batch, load)
    return half.coefficients.step_s(terms.decoding)


def moved_bytes(card: ModelCard, precision: Precision, load: Load) -> float:
    """KV and state of one prompt's new tokens, which cross from prefill to decode."""
    return sequence_bytes(card, precision, Layout(), Load(load.new_prompt, 0))


def pair_point(
    card: ModelCard,
    precision: Precision,
    prefill: Half,
    decode: Half,
    link_bytes_s: float,
    load: Load,
    slo: Slo,
    margin: float,
    batch_max: int = 1024,
) -> Point | Refusal:
    """Where the pair runs, or why it cannot.

    Args:
        link_bytes_s: between one replica of each side. batch_max: of one decode replica.
    """
    for half in (prefill, decode):
        if (why := half.coefficients.beyond(load.context)) is not None:
            return Refusal("extrapolation", why)
        if batch_limit(card, half.device, precision, half.layout, load) < 1:
            need = weights_bytes(card, precision, half.layout) + sequence_bytes(card, precision, half.layout, load)
            return Refusal(
                "memory", f"needs {need / 2**30:.1f} GiB per device, {half.device.usable_bytes / 2**30:.1f} usable"
            )
    own, bytes_each = prompt_s(card, precision, prefill, load), moved_bytes(card, precision, load)
    # A replica sends while it computes the next prompt; whichever takes longer sets its pace.
    prompts_s = prefill.replicas * UTILISATION / max(own, bytes_each / link_bytes_s)
    smallest, largest = decode.coefficients.batches

    def evaluate(batch: int) -> tuple[float, float]:
        itl = decode_s(card, precision, decode, batch, load)
        first = prefill.coefficients.first[0] + own + bytes_each / link_bytes_s + itl
        return itl, first + wait_s(prefill.replicas, own) + wait_s(batch * decode.replicas, load.output * itl)

    fits = batch_limit(card, decode.device, precision, decode.layout, load)
    found = largest_batch(min(fits, batch_max, largest), slo, margin, evaluate)
    if isinstance(found, Refusal):
        return found
    batch, itl, ttft, stopped = found
    if batch < smallest:
        return too_small(batch, smallest)
    drawn_s = decode.replicas * UTILISATION * batch / (load.output * itl)
    requests_s = min(prompts_s, drawn_s)
    classes = (decode.coefficients.trust(batch, load.context), prefill.coefficients.error_class)
    return Point(
        batch=batch * decode.replicas,
        itl_s=itl,
        ttft_s=ttft,
        requests_s=requests_s,
        limit="prefill" if prompts_s < drawn_s else stopped,
        error_class=max(classes, key=list(ErrorClass).index),
        memory_bytes=weights_bytes(card, precision, prefill.layout)
        + sequence_bytes(card, precision, prefill.layout, load),
        expert_memory_bytes=weights_bytes(card, precision, decode.layout)
        + batch * sequence_bytes(card, precision, decode.layout, load),
        link_bytes_s=requests_s * bytes_each,
    )
