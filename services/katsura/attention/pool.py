"""The expert members as one function: a token goes once to each member it needs, partial sums come back and are added.

    apply(layer) -> who serves which groups -> post to all -> wait for all -> add by ascending group
                              ^                                  |
                              +--- replay to an alternate <--- lost, late or refused

The sum has the bits of `model.ffn.LocalFfn`: members return one f32 partial per (token, group) and nobody else decides
the order of additions. A replay carries the same identity, so whoever answers it gives the same bits. With no copy left
the step is given up by a TemporaryError; the compute loop runs it again until a member is back or deadlines pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from katsura.attention import messages
from katsura.attention.config import ShardConfig
from katsura.attention.core.dispatch import Holders
from katsura.attention.lane import Lane
from katsura.attention.link import LANES, Ask, Link, LinkSettings, LostError
from katsura.attention.runner import Model
from katsura.domain.errors import InternalError, InvalidArgumentError, Reason, UnavailableError
from katsura.domain.ids import Incarnation
from katsura.domain.leases import NO_EPOCH, revision_id
from katsura.domain.shape import FfnLayout
from katsura.domain.tables import ExpertTable
from katsura.domain.units import MIB
from katsura.model.ffn import FfnInput, sum_groups
from katsura.model.gate import Routing
from katsura.model.linear import TORCH_DTYPE
from katsura.telemetry import log
from katsura.weights.manifest import weights_digest
from katsura.wire import tls
from katsura.wire.frame import TRACE_BYTES, FrameId, GroupSums, Routes, dispatch_bytes, partial_bytes
from katsura.wire.header import WIRE_VERSION
from katsura.wire.repeat import Place
from katsura.wire.transport import Limits

_LOG = log.get(__name__)
_CREDITS = LANES + 2
"""Two for the long way, where a member may be asked again for what another one lost."""
_REPLY_BYTES_MAX = 64 * MIB
"""A longer answer is asked for in several frames."""


@dataclass(frozen=True, slots=True)
class _Share:
    """What one member gets of a batch: `rows` of it (None: all), and their routes if it is a mixture of experts."""

    rows: Tensor | None
    routes: Routes | None


_EVERYTHING = _Share(None, None)
_Asked = tuple[Link, Ask, _Share]


@dataclass(slots=True)
class _Batch:
    """Rows on their way through one layer: `group_of` [tokens, k] of `routing`, and members that failed on the way."""

    id: FrameId
    hidden: Tensor
    routing: Routing | None
    group_of: Tensor | None
    skipped: set[int]
    replay: bool


@dataclass(frozen=True, slots=True)
class _FanOut:
    """The lanes to all members of a layer, and in which of them the sums of its groups, ascending, are."""

    lanes: tuple[Lane, ...]
    backwards: tuple[Lane, ...]
    sums: tuple[tuple[Lane, int], ...]

    @classmethod
    def of(cls, lanes: Sequence[Lane]) -> _FanOut:
        places = sorted((group, at, i) for at, lane in enumerate(lanes) for i, group in enumerate(lane.groups))
        return cls(tuple(lanes), tuple(reversed(lanes)), tuple((lanes[at], i) for _, at, i in places))


class Pool:
    """See the module. Belongs to the compute thread."""

    def __init__(self, settings: LinkSettings, layout: FfnLayout, layer_count: int, width: int, rows_max: int) -> None:
        """`width` of the residual stream; a frame carries at most `rows_max` tokens."""
        self._settings, self._layout, self._layer_count, self._width = settings, layout, layer_count, width
        self._rows_max = rows_max
        self._holders: Holders | None = None
        self._all: list[list[tuple[Link, tuple[int, ...]]]] = [[] for _ in range(layer_count)]
        self._fans: list[_FanOut | None] = [None] * layer_count
        self._form = torch.Size(), False
        self._groups = range(layout.group_count)
        self._epoch = NO_EPOCH
        self._links: dict[int, Link] = {}
        self._fingerprint = ""
        self._mismatch = ""
        self._incarnation, self._step, self._trace = Incarnation(0), 0, b""
        self._deadline_s = 0.0
        self.failovers = 0
        """Frames that an alternate answered because the primary could not."""
        self.transport_s = [0.0] * layer_count
        """Seconds on the way per layer since the start: from the first post to the last answer, less the slowest
        member's own time."""

    def begin(self, incarnation: Incarnation, step: int, deadline_s: float, trace: str) -> None:
        """Name the step that the next frames belong to; nothing is waited for beyond `deadline_s` (monotonic)."""
        self._incarnation, self._step, self._deadline_s = incarnation, step, deadline_s
        self._trace = trace.encode("ascii", "replace")[:TRACE_BYTES]
        for link in self._links.values():
            link.begin()

    def turn_to(self, table: ExpertTable | None) -> None:
        """Use this table from the next frame on; None keeps the last one."""
        if table is None:
            return
        if (table.layout, table.layer_count) != (self._layout, self._layer_count) or not table.assignments:
            self._mismatch = f"the table of epoch {table.epoch} is for another model or names no member"
            _LOG.error(self._mismatch)
            return
        prints = [assignment.fingerprint for assignment in table.assignments]
        # The first fingerprint is kept for life: sequences have pages computed with it.
        self._fingerprint = self._fingerprint or prints[0]
        self._mismatch = ""
        if self._fingerprint not in prints:
            self._mismatch = "the members compute other bits than those this shard began with: restart the shard"
            _LOG.error(self._mismatch, epoch=table.epoch)
        former = {(link.assignment.member_id, link.assignment.incarnation): link for link in self._links.values()}
        self._links = {}
        for assignment in table.assignments:
            if assignment.fingerprint != self._fingerprint:
                continue
            link = former.get((assignment.member_id, assignment.incarnation))
            if link is None or link.assignment.data_endpoints != assignment.data_endpoints:
                link = Link(assignment, self._settings)
            link.assignment = assignment
            self._links[assignment.rank] = link
        kept = {id(link) for link in self._links.values()}
        for link in former.values():
            if id(link) not in kept:
                link.close("the table no longer names this member")
        self._holders = Holders(table, self._fingerprint)
        self._epoch, self._all = table.epoch, []
        self._leave_lanes()
        for layer in range(self._layer_count):
            sending = self._holders.send(layer, self._groups, self._links)
            self._all.append([(self._links[rank], groups) for rank, groups in sending.by_rank.items()])
            if sending.orphans:
                self._all[layer] = []
        self._mend()

    def state(self) -> messages.Pool:
        """Epoch in use, what is missing, and how each member is reached. Mends what is missing, if it can."""
        missing = self._missing()
        if missing:
            self._mend()
            missing = self._missing()
        transports = {str(link.assignment.member_id): link.how for link in self._links.values() if link.is_open}
        return messages.Pool(self._epoch, missing, transports, self.failovers)

    def close(self) -> None:
        """Let go of all members."""
        for link in self._links.values():
            link.close("the shard ends")

    def apply(self, layer: int, inputs: FfnInput) -> Tensor:
        """The FFN output of `layer`: f32 `[tokens, width]`. UnavailableError (NO_EXPERT_COPY) gives the step up."""
        hidden, routing = inputs.hidden, inputs.routing
        failed: set[int] = set()
        if routing is None:
            form = hidden.shape, len(self._trace) > 0
            fan = self._fans[layer] if form == self._form else None
            if fan is None:
                fan = self._fan_out(layer, hidden, form)
            if fan is not None:
                total = self._at_once(layer, hidden, fan, failed)
                if total is not None:
                    return total
        if hidden.shape[0] <= self._rows_max:
            return self._apply(layer, 0, hidden, routing, failed)
        outputs = []
        for ubatch, start in enumerate(range(0, hidden.shape[0], self._rows_max)):
            rows = slice(start, start + self._rows_max)
            of_rows = None if routing is None else Routing(routing.ids[rows], routing.weights[rows])
            outputs.append(self._apply(layer, ubatch, hidden[rows], of_rows, failed))
        return torch.cat(outputs)

    def _fan_out(self, layer: int, hidden: Tensor, form: tuple[torch.Size, bool]) -> _FanOut | None:
        """A lane of this form to every member of the layer; None if one cannot be reached, or rows are too many."""
        if form != self._form:
            self._leave_lanes()
            self._form = form
        if len(hidden) > self._rows_max or not self._all[layer]:
            return None
        lanes = [link.lane(groups, hidden, form[1]) for link, groups in self._all[layer]]
        open_lanes = [lane for lane in lanes if lane is not None]
        if len(open_lanes) < len(lanes):
            return None
        known = next((each for each in self._fans if each is not None and each.lanes == tuple(open_lanes)), None)
        self._fans[layer] = known or _FanOut.of(open_lanes)
        return self._fans[layer]

    def _at_once(self, layer: int, hidden: Tensor, fan: _FanOut, failed: set[int]) -> Tensor | None:
        """The way of a decode loop: a frame to every member, and their sum. None where one `failed`, noted by rank."""
        place = layer, 0, self._incarnation, self._step
        begin_s = monotonic()
        left_s = self._deadline_s - begin_s
        if left_s <= 0:
            return None
        left_us = int(left_s * 1e6)
        lane = fan.lanes[0]
        try:
            for lane in fan.lanes:
                lane.post(place, hidden, self._epoch, left_us, self._trace)
            # The last one first: on a shared core the others answer meanwhile, without waking us each time.
            for lane in fan.backwards:
                lane.take(place, left_s)
        except (LostError, InternalError) as error:
            self._settle(fan, lane, place, left_s, failed)
            if isinstance(error, InternalError):
                raise
            self._note_lost(lane.link, error, failed)
            return None
        slowest_us = 0
        total: Tensor | None = None
        for lane, index in fan.sums:
            part = lane.sums(index)
            total = part if total is None else total + part
            slowest_us = max(slowest_us, lane.member_us)
        assert total is not None, "a table names groups"
        self.transport_s[layer] += max(0.0, monotonic() - begin_s - slowest_us / 1e6)
        return total.clone() if len(fan.sums) == 1 else total

    def _settle(self, fan: _FanOut, lane: Lane, place: Place, left_s: float, failed: set[int]) -> None:
        """After `lane` has failed: wait for what the others have under way, so that their slots are free again."""
        for other in fan.lanes:
            if other is not lane and other.under_way:
                try:
                    other.take(place, left_s)
                except LostError as lost:
                    self._note_lost(other.link, lost, failed)
                except InternalError:
                    continue  # whoever asks again hears it again

    def _leave_lanes(self) -> None:
        self._fans = [None] * self._layer_count
        for link in self._links.values():
            link.leave_lanes()

    def _note_lost(self, link: Link, lost: LostError, failed: set[int]) -> None:
        failed.add(link.assignment.rank)
        self._fans = [None] * self._layer_count
        _LOG.warning("a member did not serve a frame", member=link.assignment.member_id, why=lost.why)

    def _apply(self, layer: int, ubatch: int, hidden: Tensor, routing: Routing | None, skipped: set[int]) -> Tensor:
        id = FrameId(self._incarnation, self._step, layer, ubatch)
        group_of = None if routing is None else routing.ids // self._layout.units_per_group
        batch = _Batch(id, hidden, routing, group_of, skipped, replay=bool(skipped))
        partials = self._unused(batch)
        missing = [group for group in self._groups if group not in partials]
        held: list[Link] = []
        try:
            while missing:
                asked = self._post(batch, missing)
                # The last one first: on a shared core the others answer meanwhile, without waking us each time.
                for link, ask, share in reversed(asked):
                    parts = self._answer(link, ask, batch)
                    if parts is not None:
                        held.append(link)
                        self._spread(parts, share, hidden.shape[0], partials)
                self._count(layer, asked)
                missing = [group for group in missing if group not in partials]
                batch.replay = True
            return _own_sum(partials)
        finally:
            for link in held:
                link.release()

    def _unused(self, batch: _Batch) -> dict[int, Tensor]:
        """Zeros for groups that no token uses: they are added too, as in one process."""
        if batch.group_of is None:
            return {}
        used = set(batch.group_of.flatten().tolist())
        zero = torch.zeros(batch.hidden.shape[0], self._width)
        return {group: zero for group in self._groups if group not in used}

    def _post(self, batch: _Batch, groups: Sequence[int]) -> list[_Asked]:
        """Send every group to its holder; what was sent, at least one frame. UnavailableError if a group has none."""
        asked: list[_Asked] = []
        while not asked:
            for link, of_link in self._holders_of(batch, groups):
                share = self._share(of_link, batch)
                tokens = batch.hidden if share.rows is None else batch.hidden.index_select(0, share.rows)
                try:
                    ask = link.post(
                        batch.id, of_link, tokens, share.routes, self._epoch, self._deadline_s, self._trace,
                        batch.replay,
                    )  # fmt: skip
                except LostError as lost:
                    self._note_lost(link, lost, batch.skipped)
                    continue
                asked.append((link, ask, share))
        return asked

    def _holders_of(self, batch: _Batch, groups: Sequence[int]) -> Sequence[tuple[Link, tuple[int, ...]]]:
        now_s, layer = monotonic(), batch.id.layer
        if self._holders is None:
            raise _no_copy(self._mismatch or "there is no expert table yet")
        if now_s >= self._deadline_s:
            raise _no_copy(f"layer {layer}: the deadline passed while members were failing")
        if len(groups) == len(self._groups) and not batch.skipped and self._all_open(layer):
            return self._all[layer]
        usable = {rank for rank, link in self._links.items() if rank not in batch.skipped and link.usable(now_s)}
        sending = self._holders.send(layer, groups, usable)
        if sending.orphans:
            raise _no_copy(
                self._mismatch or f"layer {layer}: no member that can be reached holds groups {sending.orphans}"
            )
        for rank, of_rank in sending.by_rank.items():
            if not all(self._holders.is_primary(layer, group, rank) for group in of_rank):
                self.failovers += 1
        return [(self._links[rank], of_rank) for rank, of_rank in sending.by_rank.items()]

    def _all_open(self, layer: int) -> bool:
        links = self._all[layer]
        return bool(links) and all(link.is_open for link, _ in links)

    def _answer(self, link: Link, ask: Ask, batch: _Batch) -> tuple[GroupSums, ...] | None:
        try:
            return link.answer(ask)
        except LostError as lost:
            self._note_lost(link, lost, batch.skipped)
            return None

    def _share(self, groups: Sequence[int], batch: _Batch) -> _Share:
        routing, group_of = batch.routing, batch.group_of
        if routing is None or group_of is None:
            return _EVERYTHING
        wanted = torch.zeros(self._layout.group_count, dtype=torch.bool)
        wanted[list(groups)] = True
        mine = wanted[group_of]
        tokens, places = mine.nonzero(as_tuple=True)
        order = torch.argsort(group_of[tokens, places], stable=True)
        tokens, places = tokens[order], places[order]
        present = mine.any(1)
        row_of = present.cumsum(0) - 1
        counts = torch.bincount(group_of[tokens, places], minlength=self._layout.group_count)[list(groups)]
        routes = Routes(
            rows=row_of[tokens].int(),
            units=routing.ids[tokens, places].int(),
            weights=routing.weights[tokens, places],
            ends=tuple(counts.cumsum(0).tolist()),
        )
        return _Share(present.nonzero().flatten(), routes)

    def _spread(self, parts: Sequence[GroupSums], share: _Share, n_tokens: int, partials: dict[int, Tensor]) -> None:
        """Note partials of all tokens by group; a token that does not use a group gets zeros, as in one process."""
        for part in parts:
            if share.rows is None:
                partials[part.group] = part.sums
                continue
            rows = share.rows if part.rows is None else share.rows[part.rows.long()]
            partials[part.group] = torch.zeros(n_tokens, self._width).index_copy_(0, rows, part.sums)

    def _count(self, layer: int, asked: Sequence[_Asked]) -> None:
        ended_s = max(ask.answered_s for _, ask, _ in asked)
        slowest_s = max(ask.member_s for _, ask, _ in asked)
        self.transport_s[layer] += max(0.0, ended_s - asked[0][1].posted_s - slowest_s)

    def _missing(self) -> str:
        if self._mismatch:
            return self._mismatch
        if self._holders is None:
            return "there is no expert table yet"
        orphans = self._holders.orphans({rank for rank, link in self._links.items() if link.is_open})
        if not orphans:
            return ""
        layer, group = orphans[0]
        return (
            f"{len(orphans)} of the model's (layer, group) have no member that can be reached, first {layer}, {group}"
        )

    def _mend(self) -> None:
        now_s = monotonic()
        for link in self._links.values():
            if not link.is_open and link.usable(now_s):
                try:
                    link.open()
                except LostError as lost:
                    _LOG.warning("cannot reach a member", member=link.assignment.member_id, why=lost.why)


def _own_sum(partials: dict[int, Tensor]) -> Tensor:
    """`sum_groups` in memory of its own: partials lie in slots that are given back."""
    total = sum_groups(partials)
    return total.clone() if len(partials) == 1 else total


def _no_copy(why: str) -> UnavailableError:
    return UnavailableError(why, reason=Reason.NO_EXPERT_COPY)


def make_pool(config: ShardConfig, model: Model) -> tuple[Pool, Pool]:
    """The pool of a shard, as its worker wants it: what the runner calls, and what the loop steers."""
    shape, layout, dtype = model.config.shape, model.layout, TORCH_DTYPE[model.kernels.dtype]
    sum_bytes = layout.group_count * shape.hidden_size * 4
    rows_max = max(1, min(config.step_tokens, _REPLY_BYTES_MAX // sum_bytes))
    n_routes = rows_max * shape.experts_per_token
    limits = Limits(
        _CREDITS,
        max(4096, dispatch_bytes(rows_max, shape.hidden_size, dtype, layout.group_count, n_routes, True)),
        max(4096, partial_bytes(rows_max * layout.group_count, shape.hidden_size, layout.group_count, False)),
    )
    if limits.request_bytes > _REPLY_BYTES_MAX:
        raise InvalidArgumentError(
            f"KATSURA_STEP_TOKENS: a step of {config.step_tokens} tokens does not fit a frame; lower it",
            field="KATSURA_STEP_TOKENS",
        )
    digest = weights_digest(model.folder)
    files = config.serve.tls
    settings = LinkSettings(
        revision_id=revision_id(digest, config.dtype, config.numerics, layout, WIRE_VERSION),
        weights_digest=digest,
        shard_id=config.serve.instance_id,
        units_per_group=layout.units_per_group,
        limits=limits,
        frame_timeout_s=config.frame_timeout_s,
        tls=tls.client_contexts(files.certificate, files.key, files.authority) if files else None,
    )
    pool = Pool(settings, layout, shape.layer_count, shape.hidden_size, rows_max)
    return pool, pool
