"""The pool gives the bits of one process, whoever serves, fails, refuses or comes back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from katsura.attention.config import ShardConfig
from katsura.attention.link import LANES, LostError
from katsura.attention.pool import Pool, make_pool
from katsura.attention.runner import Model
from katsura.domain.errors import InternalError, Reason, UnavailableError
from katsura.domain.ids import Incarnation
from katsura.domain.leases import GroupRange
from katsura.domain.tables import Assignment
from katsura.engine.worker import load_experts
from katsura.model.ffn import FfnInput, LocalFfn
from katsura.model.gate import Routing
from katsura.testing.compute import environment
from katsura.testing.members import InlineMember, table_of
from katsura.testing.tiny import save_tiny
from katsura.wire.frame import Dispatch
from katsura.wire.header import Flag, Header
from katsura.wire.transport import Request

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LAYERS = 3
SIZES = {"FFN_SLICES": 4, "FFN_GROUPS": 4, "STEP_TOKENS": 64, "FRAME_TIMEOUT_S": 30}


def over(*groups: int) -> list[GroupRange]:
    return [GroupRange(0, LAYERS, groups)] if groups else []


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members are threads of this very process: on a busy machine a live one may well be late."""
    monkeypatch.setattr("katsura.attention.core.dispatch.SUSPECT_S", 20.0)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pool")
    return {family: save_tiny(root / family, family).folder for family in ("llama", "mixtral")}


class House:
    """Members on threads, the pool under test, and one process's own answer to compare with."""

    def __init__(self, folder: Path, sockets: Path, family: str) -> None:
        self.folder, self.sockets, self.family = folder, sockets, family
        self.members: list[InlineMember] = []
        config = ShardConfig.from_env(environment(folder, **SIZES), "attention")
        self.model = self._open(config)
        self.pool: Pool = make_pool(config, self.model)[0]
        self.local: LocalFfn = load_experts(config, self.model)[0]  # type: ignore[assignment]
        self.epoch = 0

    @staticmethod
    def _open(config: ShardConfig) -> Model:
        from katsura.domain.shape import layout_for
        from katsura.weights.load import read_config

        layout = layout_for(read_config(config.model_path).shape, config.ffn_slices, config.ffn_groups)
        return Model.open(config.model_path, layout, config.dtype, config.numerics, config.kernels_path)

    def member(self, life: int = 1, name: str = "") -> InlineMember:
        member = InlineMember(self.folder, name or f"m{len(self.members)}", self.sockets, life=life).start()
        self.members.append(member)
        return member

    def turn_to(self, *assignments: Assignment) -> None:
        self.epoch += 1
        self.pool.turn_to(table_of(self.epoch, LAYERS, self.model.layout, *assignments))

    def inputs(self, rows: int, seed: int = 0) -> FfnInput:
        noise = torch.Generator().manual_seed(seed)
        hidden = torch.randn(rows, 48, generator=noise)
        if self.family == "llama":
            return FfnInput(hidden, None)
        weights, ids = torch.topk(torch.softmax(torch.randn(rows, 4, generator=noise), -1), 2, dim=-1)
        return FfnInput(hidden, Routing(ids, weights))

    def agrees(self, layer: int, rows: int, seed: int = 0, deadline_s: float = 60.0, trace: str = TRACE) -> bool:
        inputs = self.inputs(rows, seed)
        self.pool.begin(Incarnation(3), seed, time.monotonic() + deadline_s, trace)
        with torch.inference_mode():
            return torch.equal(self.pool.apply(layer, inputs), self.local.apply(layer, inputs))

    def close(self) -> None:
        self.pool.close()
        for member in self.members:
            member.stop()


@pytest.fixture
def open_house(folders: dict[str, Path]) -> Iterator[Callable[[str], House]]:
    houses: list[House] = []
    with tempfile.TemporaryDirectory(prefix="kp") as sockets:

        def opened(family: str) -> House:
            houses.append(House(folders[family], Path(sockets), family))
            return houses[-1]

        yield opened
        for house in houses:
            house.close()


@pytest.fixture(params=["llama", "mixtral"])
def house(request: pytest.FixtureRequest, open_house: Callable[[str], House]) -> House:
    return open_house(request.param)


@pytest.fixture
def pair(house: House) -> tuple[House, InlineMember, InlineMember]:
    """Two members; each stands in for the other."""
    a, b = house.member(), house.member()
    house.turn_to(a.assignment(0, over(0, 2), over(1, 3)), b.assignment(1, over(1, 3), over(0, 2)))
    return house, a, b


@pytest.mark.parametrize("split", [[(0, 1, 2, 3)], [(0, 3), (1, 2)], [(0,), (1,), (2,), (3,)]])
def test_the_sum_has_the_bits_of_one_process_over_any_number_of_members(
    house: House, split: list[tuple[int, ...]]
) -> None:
    members = [house.member() for _ in split]
    house.turn_to(
        *(m.assignment(rank, over(*groups)) for rank, (m, groups) in enumerate(zip(members, split, strict=True)))
    )
    for layer in range(LAYERS):
        for rows in (1, 2, 7, 64):
            assert house.agrees(layer, rows, seed=rows)


def test_a_step_longer_than_a_frame_is_sent_in_several(pair: tuple[House, InlineMember, InlineMember]) -> None:
    assert pair[0].agrees(1, 64 * 2 + 5)


def test_a_lost_member_is_replaced_by_its_alternate_and_no_bit_changes(
    pair: tuple[House, InlineMember, InlineMember],
) -> None:
    house, a, _ = pair
    assert house.agrees(0, 5)
    a.stop()
    for layer in range(LAYERS):
        assert house.agrees(layer, 5, seed=layer)
    assert house.pool.failovers > 0
    assert house.pool.state().missing == ""


def test_a_member_that_comes_back_serves_again(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, b = pair
    a.stop()
    assert house.agrees(0, 3)
    a.start()
    b.stop()
    limit = time.monotonic() + 30
    while True:
        try:
            assert house.agrees(0, 3)
            break
        except UnavailableError:
            assert time.monotonic() < limit


def test_without_a_copy_the_step_is_given_up_and_runs_when_one_is_back(house: House) -> None:
    a = house.member()
    house.turn_to(a.assignment(0, over(0, 1, 2, 3)))
    a.stop()
    with pytest.raises(UnavailableError, match="groups") as caught:
        house.agrees(0, 3)
    assert caught.value.reason is Reason.NO_EXPERT_COPY
    assert "no member that can be reached" in house.pool.state().missing
    a.start()
    limit = time.monotonic() + 30
    while house.pool.state().missing:
        assert time.monotonic() < limit
    assert house.agrees(0, 3)


def test_before_the_first_table_nothing_can_be_computed(house: House) -> None:
    assert house.pool.state().missing == "there is no expert table yet"
    with pytest.raises(UnavailableError, match="no expert table"):
        house.agrees(0, 1)


def test_the_last_table_stays_in_use_when_there_is_none(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house = pair[0]
    house.pool.turn_to(None)
    assert house.agrees(0, 2)
    assert house.pool.state().epoch == 1


def test_a_table_for_another_model_is_not_used(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, _ = pair
    house.pool.turn_to(table_of(9, LAYERS + 1, house.model.layout, a.assignment(0, over(0, 1, 2, 3))))
    assert "another model" in house.pool.state().missing
    assert house.agrees(0, 1)


def test_another_life_of_a_member_is_not_the_one_that_the_table_names(house: House) -> None:
    a = house.member(life=1)
    assignment = a.assignment(0, over(0, 1, 2, 3))
    a.stop()
    reborn = house.member(life=2, name="m0")
    house.turn_to(assignment)
    with pytest.raises(UnavailableError):
        house.agrees(0, 1)
    house.turn_to(reborn.assignment(0, over(0, 1, 2, 3)))
    assert house.agrees(0, 1)


def test_a_member_that_computes_other_bits_is_never_asked(house: House) -> None:
    a, odd = house.member(), house.member()
    house.turn_to(a.assignment(0, over(0, 1, 2, 3)), odd.assignment(1, [], over(0, 1, 2, 3), fingerprint="odd"))
    assert house.agrees(0, 2)
    a.stop()
    with pytest.raises(UnavailableError):
        house.agrees(0, 2)
    assert odd.frames.tally(0) is None


def test_a_member_that_says_another_fingerprint_than_the_table_is_never_asked(house: House) -> None:
    a = house.member()
    house.turn_to(a.assignment(0, over(0, 1, 2, 3), fingerprint="promised"))
    with pytest.raises(UnavailableError):
        house.agrees(0, 2)


def test_a_shard_never_changes_the_bits_that_it_began_with(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, _ = pair
    house.turn_to(a.assignment(0, over(0, 1, 2, 3), fingerprint="other"))
    assert "restart the shard" in house.pool.state().missing
    with pytest.raises(UnavailableError, match="restart the shard"):
        house.agrees(0, 1)


def test_a_draining_member_is_replaced(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, _ = pair
    assert house.agrees(0, 2)
    a.frames.draining = True
    assert house.agrees(1, 2)


def test_a_member_without_the_group_is_replaced(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, _ = pair
    a.groups.free((1, 0))
    assert house.agrees(1, 2)


def test_a_member_with_other_weights_is_never_asked_again(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, b = pair
    a.frames._digest = b"otherwei"
    assert house.agrees(1, 2)
    b.stop()
    a.frames._digest = a.digest[:8]
    with pytest.raises(UnavailableError):
        house.agrees(1, 2)


def test_a_frame_that_a_member_cannot_read_is_our_bug_and_not_retried(
    pair: tuple[House, InlineMember, InlineMember],
) -> None:
    house, a, b = pair
    for member in (a, b):
        member.frames._width = 1
    with pytest.raises(InternalError, match="cannot read our frame"):
        house.agrees(0, 1)
    for member in (a, b):
        member.frames._width = 48
    for seed in range(5):
        assert house.agrees(0, 1, seed)


def test_nothing_is_waited_for_beyond_the_deadline(pair: tuple[House, InlineMember, InlineMember]) -> None:
    with pytest.raises(UnavailableError, match="deadline"):
        pair[0].agrees(0, 1, deadline_s=-1.0)


def test_members_that_a_table_drops_lose_their_channels(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, b = pair
    assert house.agrees(0, 1)
    house.turn_to(b.assignment(0, over(0, 1, 2, 3)))
    assert house.agrees(0, 1)
    state = house.pool.state()
    assert set(state.transports) == {b.name}
    assert state.transports[b.name].startswith("shm")
    assert a.frames.clients.keys() == {1}


def test_frames_carry_the_trace_and_the_time_on_the_way_is_counted(
    pair: tuple[House, InlineMember, InlineMember],
) -> None:
    house, a, _ = pair
    assert house.agrees(1, 4, seed=6)
    report = a.frames.tally(1)
    assert report is not None
    assert [(step.trace, step.step) for step in report.steps] == [(TRACE, 6)]
    assert house.pool.transport_s[1] > 0
    assert house.pool.transport_s[0] == 0


def test_a_token_goes_only_to_members_that_it_needs(open_house: Callable[[str], House]) -> None:
    house = open_house("mixtral")
    a, b = house.member(), house.member()
    house.turn_to(a.assignment(0, over(0, 1)), b.assignment(1, over(2, 3)))
    hidden = torch.randn(2, 48)
    inputs = FfnInput(hidden, Routing(torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5)))
    house.pool.begin(Incarnation(1), 1, time.monotonic() + 30, "")
    assert torch.equal(house.pool.apply(0, inputs), house.local.apply(0, inputs))
    assert a.frames.tally(1) is not None
    assert b.frames.tally(1) is None


def test_an_answer_to_another_question_is_not_believed(
    pair: tuple[House, InlineMember, InlineMember], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, a, _ = pair
    reply = a.frames._reply

    def confused(arrived: object, *rest: object) -> None:
        frame = arrived.frame  # type: ignore[attr-defined]
        header = frame.header._replace(step=frame.header.step + 1)
        arrived.frame = replace(frame, header=header)  # type: ignore[attr-defined]
        reply(arrived, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(a.frames, "_reply", confused)
    assert house.agrees(0, 2)
    assert "m0" not in [
        name for name, link in zip(("m0", "m1"), house.pool._links.values(), strict=True) if link.is_open
    ]


def test_who_refused_is_not_asked_again_and_whoever_stands_in_hears_of_a_replay(
    pair: tuple[House, InlineMember, InlineMember], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, a, b = pair
    a.groups.free((0, 0))
    flags, checked = [], b.frames._checked

    def noted(request: Request, header: Header) -> Dispatch:
        flags.append(header.flags)
        return checked(request, header)

    monkeypatch.setattr(b.frames, "_checked", noted)
    assert house.agrees(0, 2)
    report = a.frames.tally(1)
    assert report is not None
    assert (report.frames, report.nacks) == (0, 1)
    assert bool(flags[-1] & Flag.REPLAY)


def test_an_answer_for_the_groups_of_the_last_table_is_not_believed(
    open_house: Callable[[str], House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = open_house("llama")
    a, b = house.member(), house.member()
    house.turn_to(a.assignment(0, over(0, 2), over(1, 3)), b.assignment(1, over(1, 3), over(0, 2)))
    assert all(house.agrees(0, 2, seed) for seed in range(3))
    house.turn_to(a.assignment(0, over(0, 1), over(2, 3)), b.assignment(1, over(2, 3), over(0, 1)))
    reply = a.frames._reply

    def behind(arrived: object, *rest: object) -> None:
        arrived.frame = replace(arrived.frame, groups=(0, 2))  # type: ignore[attr-defined]
        reply(arrived, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(a.frames, "_reply", behind)
    assert house.agrees(0, 2, 3)
    assert [link.is_open for link in house.pool._links.values()] == [False, True]


def test_a_member_with_other_groups_in_every_layer_has_lanes_for_some_and_serves_all(
    open_house: Callable[[str], House],
) -> None:
    house = open_house("llama")
    a, b = house.member(), house.member()
    a_has = [GroupRange(layer, layer + 1, (layer,)) for layer in range(LAYERS)]
    b_has = [
        GroupRange(layer, layer + 1, tuple(group for group in range(4) if group != layer)) for layer in range(LAYERS)
    ]
    house.turn_to(a.assignment(0, a_has), b.assignment(1, b_has))
    for rows in (1, 1, 5, 1):
        assert all(house.agrees(layer, rows, seed=layer) for layer in range(LAYERS))
    assert LANES < LAYERS
    assert {len(link._lanes) for link in house.pool._links.values()} == {LANES}


def test_steps_with_and_without_a_trace_follow_each_other(pair: tuple[House, InlineMember, InlineMember]) -> None:
    house, a, _ = pair
    for seed, trace in enumerate(["", TRACE, "", "", TRACE, TRACE]):
        assert all(house.agrees(layer, 2, seed, trace=trace) for layer in range(LAYERS))
        report = a.frames.tally(1)
        assert report is not None
        assert (report.nacks, [step.trace for step in report.steps]) == (0, [trace] if trace else [])


@pytest.fixture
def alone(open_house: Callable[[str], House], monkeypatch: pytest.MonkeyPatch) -> tuple[House, InlineMember]:
    """One member with the one group that there is: after its first frames it takes the short way."""
    monkeypatch.setitem(SIZES, "FFN_GROUPS", 1)
    house = open_house("llama")
    member = InlineMember(house.folder, "m0", house.sockets, groups=1).start()
    house.members.append(member)
    return house, member


def test_a_member_hears_the_epoch_of_frames_that_take_its_short_way_too(alone: tuple[House, InlineMember]) -> None:
    house, member = alone
    for epoch in (1, 2, 3):
        house.turn_to(member.assignment(0, over(0)))
        assert all(house.agrees(layer, 2) for layer in range(LAYERS))
        assert [last.epoch for last in member.frames.clients.values()] == [epoch]


def test_an_output_of_one_group_is_no_view_of_a_slot_that_the_next_frame_writes(
    alone: tuple[House, InlineMember],
) -> None:
    house, member = alone
    house.turn_to(member.assignment(0, over(0)))
    assert all(house.agrees(0, 1, seed) for seed in range(2))
    house.pool.begin(Incarnation(3), 3, time.monotonic() + 60, TRACE)
    with torch.inference_mode():
        first = house.pool.apply(0, house.inputs(1, 3))
        kept = first.clone()
        house.pool.apply(0, house.inputs(1, 4))
    assert torch.equal(first, kept)


def test_every_table_has_lanes_for_its_own_groups_only(open_house: Callable[[str], House]) -> None:
    house = open_house("llama")
    a, b = house.member(), house.member()
    for first, second in (((0, 2), (1, 3)), ((0, 1), (2, 3)), ((0,), (1, 2, 3)), ((3,), (0, 1, 2))):
        house.turn_to(a.assignment(0, over(*first)), b.assignment(1, over(*second)))
        assert house.agrees(0, 2)
        assert [list(link._lanes) for link in house.pool._links.values()] == [[first], [second]]


def test_what_an_old_lane_meets_does_not_end_the_channel_that_came_after_it(
    pair: tuple[House, InlineMember, InlineMember],
) -> None:
    house, a, _ = pair
    if house.family != "llama":
        return
    assert house.agrees(0, 1)
    link = house.pool._links[0]
    (old,) = link._lanes.values()
    a.stop()
    assert house.agrees(0, 1)
    a.start()
    limit = time.monotonic() + 30
    while not link.is_open:
        assert time.monotonic() < limit
        house.agrees(0, 1)
    with torch.inference_mode(), pytest.raises(LostError):
        old.post((0, 0, 3, 1), house.inputs(1).hidden, 1, 1000, b"")
    assert link.is_open
