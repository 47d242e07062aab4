"""Frames that can be computed are, in place; all others come back with a reason."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from katsura.domain.cost import FrameCost
from katsura.domain.errors import FailedPreconditionError
from katsura.domain.shape import Numerics
from katsura.experts.frames import Frames, Identity
from katsura.experts.groups import Groups
from katsura.testing.members import holdings_of
from katsura.weights.reader import Checkpoint
from katsura.wire.frame import FrameId, Partial, Routes, decode_partial, encode_dispatch
from katsura.wire.header import Kind, NackReason, read_control, read_header, write_header

DIGEST = b"w" * 32
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Posted:
    """A request as a transport hands it over."""

    frame: memoryview
    client: int = 1
    slot: int = 0
    reply_bytes: int = 1 << 16
    alive: bool = True
    reply_buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(1 << 16)))
    answered: int | None = None

    def answer(self, nbytes: int) -> None:
        self.answered = nbytes

    def reply(self) -> Partial | dict[str, Any]:
        assert self.answered is not None, "nothing was answered"
        buffer = self.reply_buffer[: self.answered]
        header = read_header(buffer)
        return decode_partial(buffer, header) if header.kind is Kind.PARTIAL else read_control(buffer, header)


@pytest.fixture
def frames(groups: Groups) -> Frames:
    identity = Identity(5, DIGEST, "rev", "print", FrameCost(1e-5, 1e-6), Numerics.INVARIANT)
    return Frames(identity, groups, time.monotonic)


@pytest.fixture
def dense(folders: dict[str, Path]) -> Frames:
    """Layer 0 of the dense model only."""
    holdings = holdings_of(folders["llama"], 4, 2)
    groups = Groups(holdings, Checkpoint(holdings.folder))
    groups.load((0, 0))
    groups.load((0, 1))
    return Frames(Identity(5, DIGEST, "rev", "print", FrameCost(0.5, 0.0), Numerics.INVARIANT), groups, time.monotonic)


def post(
    hidden: torch.Tensor, groups: tuple[int, ...] = (0, 1), layer: int = 0, routes: Routes | None = None, **more: Any
) -> Posted:
    buffer = memoryview(bytearray(1 << 16))
    fields = {"digest": DIGEST, "epoch": 3, "deadline_us": 10**9} | more
    length = encode_dispatch(buffer, FrameId(9, 8, layer, 0), groups, hidden, routes, **fields)
    return Posted(buffer[:length])


def test_every_frame_of_a_loop_gets_its_own_answer(dense: Frames) -> None:
    """The second and later frames of one form take the short way, in the same memory."""
    request, reply_buffer = memoryview(bytearray(1 << 16)), memoryview(bytearray(1 << 16))
    for seed in range(4):
        hidden = torch.randn(2, 48, generator=torch.Generator().manual_seed(seed))
        written = post(hidden).frame
        request[: len(written)] = written
        posted = Posted(request[: len(written)], reply_buffer=reply_buffer)
        dense.serve([posted])
        reply = posted.reply()
        assert isinstance(reply, Partial)
        alone = [dense._groups.partial((0, group), hidden, None) for group in (0, 1)]
        assert [torch.equal(part.sums, each) for part, each in zip(reply.parts, alone, strict=True)] == [True] * 2


def test_a_slot_that_held_a_refusal_is_answered_whole_again(dense: Frames) -> None:
    good, bad = post(torch.ones(1, 48)), post(torch.ones(1, 48), layer=1)
    dense.serve([good])
    first = bytes(good.reply_buffer[64 : good.answered])
    bad.reply_buffer = good.reply_buffer
    dense.serve([bad])
    assert bad.reply()["reason"] == NackReason.NOT_LOADED  # type: ignore[index]
    again = post(torch.ones(1, 48))
    again.reply_buffer = good.reply_buffer
    dense.serve([again])
    reply = again.reply()
    assert isinstance(reply, Partial)
    assert [part.group for part in reply.parts] == [0, 1]
    assert len(first) == len(again.reply_buffer[64 : again.answered])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": b"x" * 32}, NackReason.WRONG_WEIGHTS),
        ({"layer": 1}, NackReason.NOT_LOADED),
        ({"layer": 1, "epoch": 2}, NackReason.STALE_EPOCH),
        ({"layer": 7}, NackReason.MALFORMED),
        ({"groups": (0, 2)}, NackReason.MALFORMED),
        ({"hidden": torch.ones(1, 47)}, NackReason.MALFORMED),
        ({"hidden": torch.ones(1, 48, dtype=torch.bfloat16)}, NackReason.MALFORMED),
    ],
)
def test_a_frame_that_cannot_be_computed_says_why(dense: Frames, changes: dict[str, Any], reason: NackReason) -> None:
    dense.epoch = 3
    posted = post(**({"hidden": torch.ones(1, 48)} | changes))
    dense.serve([posted])
    refusal = posted.reply()
    assert isinstance(refusal, dict)
    assert (refusal["reason"], refusal["epoch"]) == (reason, 3)
    report = dense.tally(1)
    assert report is not None
    assert (report.frames, report.nacks) == (0, 1)


def test_bytes_that_are_no_frame_are_refused_and_others_are_served(dense: Frames) -> None:
    noise, good = Posted(memoryview(bytearray(b"\xff" * 100))), post(torch.ones(1, 48))
    dense.serve([noise, good])
    assert noise.reply()["reason"] == NackReason.MALFORMED  # type: ignore[index]
    assert isinstance(good.reply(), Partial)


def test_a_partial_is_no_question(dense: Frames) -> None:
    posted = post(torch.ones(1, 48))
    write_header(posted.frame, read_header(posted.frame)._replace(kind=Kind.PARTIAL))
    dense.serve([posted])
    assert posted.reply()["reason"] == NackReason.MALFORMED  # type: ignore[index]


def test_a_reply_slot_that_is_too_short_is_noticed_before_computing(dense: Frames) -> None:
    posted = post(torch.ones(64, 48))
    posted.reply_bytes = 4096
    dense.serve([posted])
    assert posted.reply()["reason"] == NackReason.MALFORMED  # type: ignore[index]


def test_a_route_to_a_unit_of_another_group_is_refused(folders: dict[str, Path]) -> None:
    holdings = holdings_of(folders["mixtral"], 4, 2)
    groups = Groups(holdings, Checkpoint(holdings.folder))
    groups.load((0, 0))
    moe = Frames(Identity(5, DIGEST, "rev", "print", FrameCost(0, 0), Numerics.FAST), groups, time.monotonic)
    for unit, fine in ((1, True), (2, False)):
        routes = Routes(torch.tensor([0]).int(), torch.tensor([unit]).int(), torch.ones(1), (1,))
        posted = post(torch.ones(1, 48), (0,), routes=routes)
        moe.serve([posted])
        assert isinstance(posted.reply(), Partial) is fine
    dense_form = post(torch.ones(1, 48), (0,))
    moe.serve([dense_form])
    assert dense_form.reply()["reason"] == NackReason.MALFORMED  # type: ignore[index]


def test_a_draining_member_gives_frames_back_and_greets_nobody(dense: Frames) -> None:
    dense.draining = True
    posted = post(torch.ones(1, 48))
    dense.serve([posted])
    assert posted.reply()["reason"] == NackReason.DRAINING  # type: ignore[index]
    with pytest.raises(FailedPreconditionError, match="draining"):
        dense.admit({"revision_id": "rev"})


def test_only_shards_of_the_same_revision_are_welcome(dense: Frames) -> None:
    assert dense.admit({"revision_id": "rev"}) == {
        "incarnation": "5", "fingerprint": "print", "unit_cost_s": 0.5, "token_cost_s": 0.0,
    }  # fmt: skip
    with pytest.raises(FailedPreconditionError, match="revision rev"):
        dense.admit({"revision_id": "other"})


def test_of_frames_that_cannot_all_be_in_time_the_later_go_back_for_another_copy(dense: Frames) -> None:
    first = post(torch.ones(1, 48), deadline_us=10_000_000)
    second = replace(post(torch.ones(1, 48), deadline_us=1_000_000), client=2)
    gone = replace(post(torch.ones(1, 48), deadline_us=0), client=3)
    dense._identity = replace(dense._identity, numerics=Numerics.FAST)
    dense.serve([first, second, gone])
    answers = [posted.reply() for posted in (first, second, gone)]
    assert isinstance(answers[1], Partial)
    assert [each["reason"] for each in answers if isinstance(each, dict)] == ["EXPIRED"]


def test_a_traced_step_is_reported_once_with_all_its_frames(dense: Frames) -> None:
    for _ in range(3):
        dense.serve([post(torch.ones(2, 48), trace=TRACE)])
    report = dense.tally(1)
    assert report is not None
    assert [(s.trace, s.step, s.frames, s.tokens) for s in report.steps] == [(TRACE.decode(), 8, 3, 2)]
    assert report.steps[0].begin_ns <= report.steps[0].end_ns
    assert dense.tally(1) is None


def test_clients_that_left_are_forgotten(dense: Frames) -> None:
    dense.serve([post(torch.ones(1, 48)), replace(post(torch.ones(1, 48)), client=2)])
    assert set(dense.clients) == {1, 2}
    dense.forget_all_but(lambda client: client == 2)
    assert set(dense.clients) == {2}
