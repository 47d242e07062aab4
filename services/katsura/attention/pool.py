"""The expert members as one function: a token goes once to each member it needs, partial sums come back and are added.

    apply(layer) -> who serves which groups -> post to all -> wait for all -> add by ascending group
                              ^                                  |
                              +--- replay to an alternate <--- lost, late or refused

The sum has the bits of `model.ffn.LocalFfn`: members return one f32 partial per (token, group) and nobody else decides
the order of additions. A replay carries the same identity, so whoever answers it gives the same bits. With no copy left
the step is given up by a TemporaryError; the compute loop runs it again until a member is back or deadlines pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from katsura.attention import messages
from katsura.attention.config import ShardConfig
from katsura.attention.core.dispatch import Holders
from katsura.attention.link import Ask, Link, LinkSettings, LostError
from katsura.attention.runner import Model
from katsura.domain.errors import InvalidArgumentError, Reason, UnavailableError
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
from katsura.wire.frame import FrameId, GroupSums, Routes, dispatch_bytes, partial_bytes
from katsura.wire.header import WIRE_VERSION
from katsura.wire.transport import Limits

_LOG = log.get(__name__)
_CREDITS = 2
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


class Pool:
    """See the module. Belongs to the compute thread."""

    def __init__(self, settings: LinkSettings, layout: FfnLayout, layer_count: int, width: int, rows_max: int) -> None:
        """`width` of the residual stream; a frame carries at most `rows_max` tokens."""
        self._settings, self._layout, self._layer_count, self._width = settings, layout, layer_count, width
        self._rows_max = rows_max
        self._holders: Holders | None = None
        self._all: list[list[tuple[Link, tuple[int, ...]]]] = []
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
        self._trace = trace.encode("ascii", "replace")[:64]

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
        if hidden.shape[0] <= self._rows_max:
            return self._apply(layer, 0, hidden, routing)
        outputs = []
        for ubatch, start in enumerate(range(0, hidden.shape[0], self._rows_max)):
            rows = slice(start, start + self._rows_max)
            of_rows = None if routing is None else Routing(routing.ids[rows], routing.weights[rows])
            outputs.append(self._apply(layer, ubatch, hidden[rows], of_rows))
        return torch.cat(outputs)

    def _at_once(self, id: FrameId, hidden: Tensor) -> Tensor | set[int]:
        """The way of a dense decode loop: a frame to every member, and their sum; ranks that failed where one did."""
        asked: list[tuple[Link, Ask]] = []
        parts: dict[int, Tensor] = {}
        failed: set[int] = set()
        for link, groups in self._all[id.layer]:
            try:
                ask = link.post(id, groups, hidden, None, self._epoch, self._deadline_s, self._trace, False)
                asked.append((link, ask))
            except LostError as lost:
                _note_lost(link, lost, failed)
        try:
            # The last one first: on a shared core the others answer meanwhile, without waking us each time.
            for link, ask in reversed(asked):
                try:
                    parts |= {part.group: part.sums for part in link.answer(ask)}
                except LostError as lost:
                    _note_lost(link, lost, failed)
            total = _own_sum(parts) if not failed else None
        finally:
            for link, _ in asked:
                link.release()
        if total is None:
            return failed
        slowest_s = max([ask.member_s for _, ask in asked])
        self.transport_s[id.layer] += max(0.0, asked[0][1].answered_s - asked[0][1].posted_s - slowest_s)
        return total

    def _apply(self, layer: int, ubatch: int, hidden: Tensor, routing: Routing | None) -> Tensor:
        id = FrameId(self._incarnation, self._step, layer, ubatch)
        failed: set[int] = set()
        if routing is None and self._all_open(layer) and time.monotonic() < self._deadline_s:
            total = self._at_once(id, hidden)
            if isinstance(total, Tensor):
                return total
            failed = total
        group_of = None if routing is None else routing.ids // self._layout.units_per_group
        batch = _Batch(id, hidden, routing, group_of, failed, replay=bool(failed))
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
                    _note_lost(link, lost, batch.skipped)
                    continue
                asked.append((link, ask, share))
        return asked

    def _holders_of(self, batch: _Batch, groups: Sequence[int]) -> Sequence[tuple[Link, tuple[int, ...]]]:
        now_s, layer = time.monotonic(), batch.id.layer
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
        links = self._all[layer] if self._all else ()
        return bool(links) and all(link.is_open for link, _ in links)

    def _answer(self, link: Link, ask: Ask, batch: _Batch) -> tuple[GroupSums, ...] | None:
        try:
            return link.answer(ask)
        except LostError as lost:
            _note_lost(link, lost, batch.skipped)
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
        now_s = time.monotonic()
        for link in self._links.values():
            if not link.is_open and link.usable(now_s):
                try:
                    link.open()
                except LostError as lost:
                    _LOG.warning("cannot reach a member", member=link.assignment.member_id, why=lost.why)


def _note_lost(link: Link, lost: LostError, failed: set[int]) -> None:
    failed.add(link.assignment.rank)
    _LOG.warning("a member did not serve a frame", member=link.assignment.member_id, why=lost.why)


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
