"""A model cut at the residual stream: attention shards on one kind of device, expert members on another.

Per FFN layer every token visits the members that hold its experts and comes back as partial sums. With m micro-batches
attention works on one while experts work on another (ping-pong, MegaScale-Infer, arXiv 2504.02263, equations in
placement.md 3.1 to 3.4). `patterns` calls `pool_point`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, comb

from katsura.placement.card import Block, Ffn, ModelCard
from katsura.placement.catalogue import Device
from katsura.placement.cost import Coefficients, ErrorClass, Load, Precision
from katsura.placement.operate import UTILISATION, Point, Refusal, Slo, largest_batch, too_small, wait_s

_PARTIAL_BYTES = 4
"""Members return sums in f32."""
COPIES = 2
"""Members that hold each unit, where there are so many (`router.core.assign`: its primary and one alternate)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the cut: `members` of `devices` each, of one kind, with what was measured on it."""

    device: Device
    members: int
    devices: int
    coefficients: Coefficients


@dataclass(frozen=True, slots=True)
class Pool:
    """Attention shards and expert members that serve together, over links of `link_bytes_s` and `hop_s` each way.

    Members share the FFN of every layer as `units` of equal size, each of which stays whole.
    """

    attention: Side
    experts: Side
    link_bytes_s: float
    hop_s: float
    units: int = 1024

    @property
    def busiest_share(self) -> float:
        """Part of each FFN that the member with the most primaries computes."""
        return ceil(self.units / self.experts.members) / self.units


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """Seconds of one layer for one micro-batch: attention, experts, and one way between them; bytes both ways."""

    attention: float
    experts: float
    hop: float
    moved: float

    @property
    def loop(self) -> float:
        """One micro-batch through one layer."""
        return self.attention + self.experts + 2 * self.hop

    @property
    def busiest(self) -> float:
        """What one micro-batch holds of the slower side."""
        return max(self.attention, self.experts)


def members_hit(block: Block, members: int) -> float:
    """Members that one token visits: n (1 - C(E - E/n, K) / C(E, K)); all of them for a dense FFN."""
    ffn = block.ffn
    if not ffn.experts:
        return float(members)
    here = ffn.experts / members
    elsewhere = ffn.experts - round(here)
    missed = comb(elsewhere, ffn.per_token) / comb(ffn.experts, ffn.per_token) if here >= 1 else 1.0
    return min(members * (1 - missed), float(ffn.per_token)) if here >= 1 else float(ffn.per_token)


@dataclass(frozen=True, slots=True)
class Layers:
    """`count` equal layers of a pool: seconds of a micro-batch without a sequence, and what each of its sequences adds.

    Of experts the weights are read, too, in whole (`expert_s` for one): as many as a micro-batch makes active.
    """

    count: int
    ffn: Ffn
    attention: tuple[float, float]
    experts: tuple[float, float]
    expert_s: float
    share: float
    hop: tuple[float, float]
    moved: float

    def times(self, batch: float) -> LayerTimes:
        """Those of a micro-batch of `batch` sequences over all shards."""
        experts = self.experts[0] + self.experts[1] * batch
        if self.expert_s:
            # The last member to answer sets the pace: its share of active experts rounds up.
            active = self.ffn.active_experts(batch) * self.share
            experts += max(active, min(1.0, self.ffn.experts * self.share)) * self.expert_s
        attention, hop = self.attention[0] + self.attention[1] * batch, self.hop[0] + self.hop[1] * batch
        return LayerTimes(attention, experts, hop, self.moved * batch)


class Steps:
    """Decode steps of one pool, prefill's share not counted: asked of many batches."""

    def __init__(self, card: ModelCard, precision: Precision, pool: Pool, load: Load) -> None:
        self._layers = tuple(layers_of(card, block, precision, pool, load) for block in card.blocks)
        head, a = card.hidden * card.vocabulary * precision.weight_bytes / pool.attention.devices, pool.attention
        self._head_s = a.coefficients.weights * head / a.device.memory_bytes_s

    def step_s(self, batch: float, micro: int) -> float:
        """Seconds of one step of `batch` sequences in `micro` micro-batches.

        A layer lasts max(m x busiest, loop): whichever is longer, the slower side's work or one micro-batch's round
        trip.
        """
        total, fill = self._head_s, None
        for layers in self._layers:
            times = layers.times(batch / micro)
            cycle = max(micro * times.busiest, times.loop)
            total += layers.count * cycle
            fill = times.loop + (micro - 1) * times.busiest - cycle if fill is None else fill
        return total + (fill or 0.0)

    def moved_bytes(self, batch: float) -> float:
        """Bytes that one step of `batch` sequences sends between the sides."""
        return sum(layers.count * layers.moved for layers in self._layers) * batch


def layers_of(card: ModelCard, block: Block, precision: Precision, pool: Pool, load: Load) -> Layers:
    """The layers of `block`, as `pool` runs them at the context of `load`."""
    a, e, ffn = pool.attention, pool.experts, block.ffn
    hit = members_hit(block, min(e.members, pool.units))
    sent, returned = hit * card.hidden * 2, hit * card.hidden * _PARTIAL_BYTES
    hop_s = max(sent, returned) / min(a.members, e.members) / pool.link_bytes_s
    return Layers(
        count=block.count,
        ffn=ffn,
        attention=_attention_s(card, block, precision, a, load),
        experts=_ffn_s(ffn, precision, pool),
        expert_s=_read_s(ffn.expert_parameters * precision.expert_bytes, e) if ffn.experts else 0.0,
        share=pool.busiest_share,
        hop=(pool.hop_s, hop_s),
        moved=sent + returned,
    )


def _read_s(held: float, side: Side) -> float:
    """Reading `held` bytes of weights, shared by the devices of a member."""
    return side.coefficients.weights * held / side.devices / side.device.memory_bytes_s


def _attention_s(card: ModelCard, block: Block, precision: Precision, side: Side, load: Load) -> tuple[float, float]:
    attention, c, device = block.attention, side.coefficients, side.device
    own = attention.parameters + block.norms + (block.ffn.dense if block.ffn.experts else 0)
    kept = attention.kept(load.context) * attention.kv_elements * precision.kv_bytes + 4 * attention.state_elements
    scores = attention.score_width * attention.kept(load.context)
    fixed = _read_s(own * precision.weight_bytes, side) + c.layers / 2
    each = c.kv * kept / min(side.devices, attention.kv_shards) / device.memory_bytes_s
    each += c.flops * 2 * (own + scores) / side.devices / device.flops(precision.arithmetic)
    if side.devices > 1:
        fixed += c.linked_layers / 2
        each += c.collective * 4 * card.hidden * (side.devices - 1) / side.devices / device.intra_bytes_s
    return fixed, each / side.members


def _ffn_s(ffn: Ffn, precision: Precision, pool: Pool) -> tuple[float, float]:
    """All but the reading of experts."""
    side, share, c = pool.experts, pool.busiest_share, pool.experts.coefficients
    parameters = (ffn.per_token * ffn.expert_parameters if ffn.experts else ffn.dense) * share
    each = c.flops * 2 * parameters / (side.device.flops(precision.arithmetic) * side.devices)
    read = 0.0 if ffn.experts else _read_s(ffn.dense * precision.weight_bytes * share, side)
    return read + c.layers / 2 + (c.moe_layers if ffn.experts else 0), each


def prefill_s(card: ModelCard, precision: Precision, pool: Pool, load: Load) -> float:
    """One prompt through one shard and the pool."""
    a, e = pool.attention, pool.experts
    total = 2.0 * load.new_prompt * card.active_parameters
    scores = card.prefill_flops(load.prompt, load.prompt - load.new_prompt) - total
    pooled = 0.0
    for b in card.blocks:
        weights = b.ffn.per_token * b.ffn.expert_parameters if b.ffn.experts else b.ffn.dense
        pooled += 2.0 * load.new_prompt * b.count * weights
    own = (total - pooled + scores) / (a.devices * a.device.flops(precision.arithmetic))
    others = pooled * pool.busiest_share / (e.devices * e.device.flops(precision.arithmetic))
    moved = 6.0 * load.new_prompt * card.hidden * card.layers * min(e.members, 8) / e.members
    return a.coefficients.prefill * own + e.coefficients.prefill * others + moved / pool.link_bytes_s


def attention_bytes(card: ModelCard, precision: Precision, devices: int) -> float:
    """Weights that one device of a shard holds: attention, embedding, head, and what every token uses of MoE layers."""
    shared = sum(b.count * b.ffn.dense for b in card.blocks if b.ffn.experts)
    held = card.attention_parameters + card.embedding + card.head + shared
    return held * precision.weight_bytes / devices


def _held_share(members: int, units: int) -> float:
    """Part of each FFN that the fullest member holds: whole units, as many as `COPIES` of each come to."""
    return ceil(units * min(COPIES, members) / members) / units


def member_bytes(card: ModelCard, precision: Precision, members: int, devices: int, units: int) -> float:
    """Weights that one device of the fullest member holds."""
    dense = sum(b.count * b.ffn.dense for b in card.blocks if not b.ffn.experts)
    total = card.expert_parameters * precision.expert_bytes + dense * precision.weight_bytes
    return total * _held_share(members, units) / devices


def member_memory_bytes(card: ModelCard, precision: Precision, members: int, devices: int, units: int) -> float:
    """Those weights, and what a member takes besides while it packs a part of a layer for its kernels.

    Read, stacked and packed it is there three times: one expert, or all that is held of a dense layer.
    """
    share = _held_share(members, units)
    packed = (
        b.ffn.expert_parameters * precision.expert_bytes
        if b.ffn.experts
        else b.ffn.dense * share * precision.weight_bytes
        for b in card.blocks
    )
    return member_bytes(card, precision, members, devices, units) + 3 * max(packed) / devices


def _sequence_bytes(card: ModelCard, precision: Precision, devices: int, load: Load) -> float:
    total = 0.0
    for b in card.blocks:
        kept = b.attention.kept(load.prompt + load.output) * b.attention.kv_elements * precision.kv_bytes
        total += b.count * (kept + 2 * b.attention.state_elements) / min(devices, b.attention.kv_shards)
    return total


def _batches(pool: Pool) -> tuple[float, float]:
    """The batches that both sides answer for."""
    a, e = pool.attention, pool.experts
    ours, theirs = a.coefficients.batches, e.coefficients.batches
    return max(ours[0] * a.members, theirs[0]), min(ours[1] * a.members, theirs[1])


def _trust(pool: Pool, batch: float, context: float) -> ErrorClass:
    """That of the less trusted side."""
    a, e = pool.attention, pool.experts
    sides = (a.coefficients.trust(batch / a.members, context), e.coefficients.trust(batch, context))
    return max(sides, key=list(ErrorClass).index)


def pool_point(
    card: ModelCard,
    precision: Precision,
    pool: Pool,
    load: Load,
    slo: Slo,
    margin: float,
    micro_batches: tuple[int, ...] = (1, 2, 3),
    batch_max: int = 4096,
    kv_bytes: int | None = None,
    known: dict[int, tuple[float, int]] | None = None,
) -> Point | Refusal:
    """Where the pool runs, or why it cannot.

    Args:
        kv_bytes: bounds the arena of one shard.
        known: steps by batch asked before of this model, load and pool; grows (objectives do not change them).
    """
    a, e = pool.attention, pool.experts
    if (why := a.coefficients.beyond(load.context) or e.coefficients.beyond(load.context)) is not None:
        return Refusal("extrapolation", why)
    smallest, largest = _batches(pool)
    held = attention_bytes(card, precision, a.devices)
    pooled = member_memory_bytes(card, precision, e.members, e.devices, pool.units)
    if pooled > e.device.usable_bytes:
        return Refusal("memory", f"a member needs {pooled / 2**30:.1f} GiB, {e.device.usable_bytes / 2**30:.1f} usable")
    per_sequence = _sequence_bytes(card, precision, a.devices, load)
    fits = a.members * (a.device.usable_bytes - held) / per_sequence
    if fits < 1:
        need = (held + per_sequence) / 2**30
        return Refusal("memory", f"a shard needs {need:.1f} GiB, {a.device.usable_bytes / 2**30:.1f} usable")
    if kv_bytes is not None:
        whole = _sequence_bytes(card, precision, 1, load)
        batch_max = max(1, min(batch_max, int(a.members * kv_bytes / whole)))
    one_prompt = prefill_s(card, precision, pool, load)
    asked = known if known is not None else {}
    steps = Steps(card, precision, pool, load)

    def step(batch: int) -> tuple[float, int]:
        if batch not in asked:
            best, micro = min((steps.step_s(batch, m), m) for m in micro_batches if m <= max(1, batch))
            asked[batch] = best + batch / load.output * one_prompt / a.members, micro
        return asked[batch]

    def evaluate(batch: int) -> tuple[float, float]:
        itl, _ = step(batch)
        fixed, _, steps, burst = a.coefficients.first
        first = fixed + steps * itl + one_prompt * (1 + burst * batch / a.members)
        return itl, first + wait_s(batch, load.output * itl)

    found = largest_batch(min(fits, batch_max, largest), slo, margin, evaluate)
    if isinstance(found, Refusal):
        return found
    batch, itl, ttft, stopped = found
    if batch < smallest:
        return too_small(batch, smallest)
    micro = step(batch)[1]
    return Point(
        batch=batch,
        itl_s=itl,
        ttft_s=ttft,
        requests_s=UTILISATION * batch / (load.output * itl),
        limit=stopped,
        error_class=_trust(pool, batch, load.context),
        memory_bytes=held + batch / a.members * per_sequence,
        expert_memory_bytes=pooled,
        link_bytes_s=steps.moved_bytes(batch) / itl,
        micro_batches=micro,
    )
