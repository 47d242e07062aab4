"""The view over the twin: what it keeps when the store is away, and what it lets go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import Reason, UnavailableError
from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.kv_events import KvBatch, KvSnapshot, KvStored
from katsura.domain.leases import ShardLease
from katsura.router.core.ledger import InFlight
from katsura.router.view import View
from katsura.state.hints import Decided, Feed, FeedKind, Finished
from katsura.state.hints_twin import TwinHintStore
from katsura.testing.fleet import shard_record

PAGES = [bytes([n]) * 16 for n in range(4)]
S = InstanceId("s")


class TurnedClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def wall_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s


class Store(TwinHintStore):
    """A twin that can be away."""

    def __init__(self, clock: TurnedClock) -> None:
        super().__init__(clock)
        self.away = False

    async def list_shards(self) -> tuple[ShardLease, ...]:
        if self.away:
            raise UnavailableError("away", reason=Reason.STORE_UNAVAILABLE)
        return await super().list_shards()


class Scene:
    def __init__(self) -> None:
        self.clock = TurnedClock()
        self.store = Store(self.clock)
        self.view = View(self.store, self.clock)

    async def read(self, after_s: float = 0.0) -> None:
        """Let time pass, then read until there is nothing new."""
        self.clock.now_s += after_s
        for _ in range(4):
            await self.view.step(0.0)

    async def tell(self, sequence: int, *pages: bytes, life: int = 1) -> None:
        await self.store.publish_kv(S, KvBatch(Incarnation(life), sequence, (KvStored(b"", pages),)))


async def test_everything_in_the_store_has_been_read_before_the_view_has_caught_up() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"))
    await scene.tell(1, *PAGES)
    await scene.view.step(0.0)
    assert not scene.view.caught_up.is_set()
    await scene.read()
    assert scene.view.caught_up.is_set()
    assert scene.view.mirror.match(PAGES) == {"s": 4}


async def test_a_hole_is_mended_from_the_snapshot_and_what_follows_it() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"))
    await scene.store.put_kv_snapshot(S, KvSnapshot(Incarnation(1), 3, (PAGES[0],)))
    await scene.tell(4, PAGES[1])
    await scene.tell(5, PAGES[2])
    await scene.read()
    assert scene.view.mirror.match(PAGES) == {"s": 3}
    assert scene.view.mirror.sequences() == {"s": 5}


async def test_a_shard_that_is_gone_is_no_candidate_at_once_and_its_pages_are_forgotten_later() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"), ttl_ms=3000)
    await scene.tell(1, *PAGES)
    await scene.read()
    await scene.read(after_s=3.0)
    assert scene.view.shards == {}
    assert scene.view.mirror.match(PAGES) == {"s": 4}
    await scene.read(after_s=31.0)
    assert scene.view.mirror.match(PAGES) == {}
    await scene.store.put_shard(shard_record("s"))
    await scene.read()
    assert scene.view.mirror.match(PAGES) == {"s": 4}


async def test_a_store_that_comes_back_empty_is_given_a_lease_time_to_fill_again() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"), ttl_ms=100)
    await scene.read()
    scene.store.away = True
    scene.clock.now_s += 2.0
    with pytest.raises(UnavailableError):
        await scene.view.step(0.0)
    scene.view._lost_since_s = scene.clock.monotonic_s()
    scene.clock.now_s += 2.0
    assert scene.view.stale_s == 2.0
    scene.store.away = False
    await scene.read()
    assert (scene.view.stale_s, list(scene.view.shards)) == (0.0, ["s"])
    await scene.read(after_s=3.9)
    assert list(scene.view.shards) == ["s"]
    await scene.read(after_s=1.1)
    assert scene.view.shards == {}


async def test_decisions_of_every_router_count_until_the_shard_counts_them() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"))
    for name in ("d1", "d2"):
        await scene.store.note_decision(Decided(name, S, Incarnation(1), 50))
    await scene.read()
    assert scene.view.ledger.of(S) == InFlight(2, 100)
    await scene.store.note_decision(Finished("d1"))
    await scene.read()
    assert scene.view.ledger.of(S) == InFlight(1, 50)
    scene.clock.now_s += 0.25
    await scene.store.put_shard(shard_record("s"))
    await scene.read()
    assert scene.view.ledger.of(S) == InFlight()


async def test_a_new_life_is_read_from_its_first_event() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"))
    await scene.tell(1, *PAGES)
    await scene.read()
    reborn = replace(shard_record("s"), incarnation=Incarnation(2), start_ms=2000)
    await scene.store.put_shard(reborn)
    await scene.tell(1, *PAGES[:2], life=2)
    await scene.read()
    assert scene.view.mirror.match(PAGES) == {"s": 2}


async def test_an_entry_of_another_version_is_passed_over() -> None:
    scene = Scene()
    await scene.store.put_shard(shard_record("s"))
    await scene.store._note(Feed(FeedKind.KV, "s"), None)  # type: ignore[arg-type]
    await scene.tell(1, *PAGES)
    await scene.read()
    assert scene.view.mirror.match(PAGES) == {"s": 4}
