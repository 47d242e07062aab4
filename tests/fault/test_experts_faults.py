"""Expert members as real processes, killed and frozen under load: the bits stay, or the step waits."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from katsura.attention.config import ShardConfig
from katsura.attention.lane import Lane
from katsura.attention.link import Link
from katsura.attention.pool import Pool, make_pool
from katsura.attention.runner import Model
from katsura.domain.errors import FailedPreconditionError, OutOfRangeError, Reason, UnavailableError
from katsura.domain.ids import Incarnation
from katsura.domain.leases import GroupRange
from katsura.domain.shape import layout_for
from katsura.engine.worker import load_experts
from katsura.experts import messages
from katsura.model.ffn import FfnInput
from katsura.testing.compute import environment
from katsura.testing.members import MemberProcess, member_environment, table_of
from katsura.testing.tiny import save_tiny
from katsura.weights.load import read_config

LAYERS = 3
SIZES = {"FFN_SLICES": 4, "FFN_GROUPS": 4}


def over(*groups: int) -> list[GroupRange]:
    return [GroupRange(0, LAYERS, groups)] if groups else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "m", "llama").folder


class House:
    """Two members that each hold everything, and shards that use them."""

    def __init__(self, folder: Path, sockets: Path, stack: ExitStack) -> None:
        self.folder, self.sockets, self._stack = folder, sockets, stack
        config = ShardConfig.from_env(environment(folder, **SIZES), "attention")
        self.model = Model.open(
            folder, layout_for(read_config(folder).shape, 4, 4), config.dtype, config.numerics, None
        )
        self.config = config
        self.local = load_experts(config, self.model)[0]
        self.pool = self.shard()
        self._epoch = 0

    def shard(self) -> Pool:
        pool = make_pool(self.config, self.model)[0]
        self._stack.callback(pool.close)
        return pool

    def member(self, name: str, groups: tuple[int, ...] = (0, 1, 2, 3)) -> MemberProcess:
        member = MemberProcess(name, member_environment(self.folder, name, self.sockets, **SIZES)).start()
        self._stack.callback(member.kill)
        member.load(*over(*groups))
        return member

    def turn_to(self, a: MemberProcess, b: MemberProcess | None = None, pool: Pool | None = None) -> None:
        self._epoch += 1
        pair = (a.assignment(0, over(0, 1, 2, 3)),) if b is None else (
            a.assignment(0, over(0, 1), over(2, 3)), b.assignment(1, over(2, 3), over(0, 1)),
        )  # fmt: skip
        (pool or self.pool).turn_to(table_of(self._epoch, LAYERS, self.model.layout, *pair))

    def sums(self, pool: Pool, step: int, layer: int, rows: int = 5) -> tuple[Tensor, Tensor]:
        """What members make of a step's layer, and what one process makes of it."""
        inputs = FfnInput(torch.randn(rows, 48, generator=torch.Generator().manual_seed(step)), None)
        pool.begin(Incarnation(3), step, time.monotonic() + 60, "")
        with torch.inference_mode():
            return pool.apply(layer, inputs), self.local.apply(layer, inputs)

    def agrees(self, step: int, layer: int, rows: int = 5) -> bool:
        return torch.equal(*self.sums(self.pool, step, layer, rows))

    def until_agrees(self, step: int) -> None:
        """A step as the compute loop runs it: given up and run again until it succeeds."""
        limit = time.monotonic() + 60
        while True:
            try:
                assert all(self.agrees(step, layer) for layer in range(LAYERS))
                return
            except UnavailableError:
                assert time.monotonic() < limit, "the step never succeeded"
                self.pool.state()


@pytest.fixture
def house(folder: Path) -> Iterator[House]:
    with tempfile.TemporaryDirectory(prefix="kf") as sockets, ExitStack() as stack:
        yield House(folder, Path(sockets), stack)


@pytest.fixture
def pair(house: House) -> tuple[House, MemberProcess, MemberProcess]:
    a, b = house.member("a"), house.member("b")
    house.turn_to(a, b)
    return house, a, b


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No member is suspected for being slow: on a busy machine any may be."""
    monkeypatch.setattr("katsura.attention.core.dispatch.SUSPECT_S", 30.0)
    monkeypatch.setattr("katsura.attention.link._CONNECT_S", 30.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("way", ["lane", "long"])
@pytest.mark.parametrize("moment", ["before a layer", "after the post", "before the answer is read"])
def test_a_member_killed_in_the_middle_of_a_step_changes_no_bit(
    pair: tuple[House, MemberProcess, MemberProcess], moment: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, a, _ = pair
    if way == "long":
        monkeypatch.setattr(Link, "lane", lambda link, *form: None)
    assert all(house.agrees(0, layer) for layer in range(LAYERS))
    killed: list[str] = []

    def kill_once(on_way: Lane | Link) -> None:
        link = on_way.link if isinstance(on_way, Lane) else on_way
        if link.assignment.member_id == "a" and not killed:
            killed.append(moment)
            a.kill()

    post, answer = (Lane.post, Lane.take) if way == "lane" else (Link.post, Link.answer)

    def posting(on_way: Lane | Link, *args: object) -> object:
        if moment == "before a layer":
            kill_once(on_way)
        ask = post(on_way, *args)  # type: ignore[arg-type]
        if moment == "after the post":
            kill_once(on_way)
        return ask

    def answering(on_way: Lane | Link, *args: object) -> object:
        if moment == "before the answer is read":
            kill_once(on_way)
        return answer(on_way, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Lane if way == "lane" else Link, post.__name__, posting)
    monkeypatch.setattr(Lane if way == "lane" else Link, answer.__name__, answering)
    for step in range(1, 4):
        for layer in range(LAYERS):
            assert house.agrees(step, layer)
    assert killed == [moment]
    assert house.pool.failovers > 0
    assert set(house.pool.state().transports) == {"b"}


@pytest.mark.usefixtures("patient")
def test_without_a_second_copy_the_step_waits_for_the_next_life_and_its_table(house: House) -> None:
    a = house.member("a")
    house.turn_to(a)
    first = [house.sums(house.pool, 7, layer)[0] for layer in range(LAYERS)]
    a.kill()
    with pytest.raises(UnavailableError) as caught:
        house.agrees(7, 1)
    assert caught.value.reason is Reason.NO_EXPERT_COPY
    again = house.member("a")
    with pytest.raises(UnavailableError):
        house.agrees(7, 1)  # it is another life: the old table does not mean it
    house.turn_to(again)
    house.until_agrees(7)
    assert all(torch.equal(house.sums(house.pool, 7, layer)[0], first[layer]) for layer in range(LAYERS))


def test_a_frozen_member_is_suspected_and_its_late_answers_are_never_read(
    pair: tuple[House, MemberProcess, MemberProcess],
) -> None:
    house, a, _ = pair
    assert house.agrees(0, 0)
    a.signal(signal.SIGSTOP)
    house.until_agrees(1)
    assert "a" not in house.pool.state().transports
    a.signal(signal.SIGCONT)
    for step in range(2, 6):
        house.until_agrees(step)


def test_a_frozen_only_member_pauses_the_shard_until_it_thaws(house: House) -> None:
    a = house.member("a")
    house.turn_to(a)
    assert house.agrees(0, 0)
    a.signal(signal.SIGSTOP)
    with pytest.raises(UnavailableError):
        house.agrees(1, 0)
    a.signal(signal.SIGCONT)
    house.until_agrees(1)


@pytest.mark.usefixtures("patient")
def test_shards_that_share_members_get_their_own_bits_while_one_member_dies(
    pair: tuple[House, MemberProcess, MemberProcess],
) -> None:
    house, a, b = pair
    pools = [house.shard() for _ in range(3)]
    for pool in pools:
        house.turn_to(a, b, pool)
    wrong: list[str] = []
    began = threading.Barrier(len(pools) + 1)

    def work(number: int, pool: Pool) -> None:
        began.wait()
        step, limit = 0, time.monotonic() + 60
        while step < 30 and time.monotonic() < limit:
            try:
                ours, local = house.sums(pool, 100 * number + step, step % LAYERS, rows=1 + number)
            except UnavailableError:
                continue
            if not torch.equal(ours, local):
                wrong.append(f"shard {number} step {step}")
            step += 1
        if step < 30:
            wrong.append(f"shard {number} got to step {step} only")

    threads = [threading.Thread(target=work, args=each) for each in enumerate(pools)]
    for thread in threads:
        thread.start()
    began.wait()
    a.kill()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("patient")
def test_groups_are_given_up_only_when_no_shard_can_mean_the_old_table(house: House) -> None:
    a = house.member("a")
    house.turn_to(a)
    assert house.agrees(0, 0)
    freed: list[messages.Done] = []
    epoch = house.pool.state().epoch + 1
    a.tell(messages.Serve(epoch))
    giving_up = threading.Thread(
        target=lambda: freed.append(a.ask(messages.Free(99, tuple(over(3)), epoch))), daemon=True
    )
    giving_up.start()
    for step in range(1, 20):
        assert house.agrees(step, 0)  # still by the old table: every frame is served
    house.pool.close()
    giving_up.join(30)
    assert [each.loaded for each in freed] == [tuple(over(0, 1, 2))]


def test_both_halves_of_a_member_die_together(house: House) -> None:
    a = house.member("a", groups=())
    a.hang_up()
    assert a.process.wait(30) == 0
    assert not any(path.name == "a.sock" for path in house.sockets.iterdir())


def test_a_member_refuses_what_it_cannot_hold_and_goes_on(house: House) -> None:
    a = house.member("a", groups=(0,))
    with pytest.raises(OutOfRangeError):
        a.load(GroupRange(0, LAYERS + 1, (0,)))
    with pytest.raises(FailedPreconditionError):
        a.ask(messages.Probe(50, (GroupRange(0, 1, (1,)),)))
    digests = a.ask(messages.Probe(51, ())).digests
    assert [(each.layer, each.group) for each in digests] == [(layer, 0) for layer in range(LAYERS)]
    b = house.member("b", groups=(0,))
    assert b.ask(messages.Probe(1, ())).digests == digests
    assert b.hello.fingerprint == a.hello.fingerprint


def test_weights_that_are_gone_are_said_plainly(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    member = MemberProcess("x", member_environment(broken, "x", tmp_path, **SIZES))
    with pytest.raises(Exception, match="safetensors") as caught:
        member.start()
    member.kill()
    assert "x.sock" not in os.listdir(tmp_path)
    assert type(caught.value).__name__ == "NotFoundError"
