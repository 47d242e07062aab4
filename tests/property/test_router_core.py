"""Laws of the router's pure core, for any fleet."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import ceil

from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.domain.errors import UnavailableError
from katsura.domain.ids import Epoch, Incarnation, InstanceId
from katsura.domain.kv_events import (
    KvBatch,
    KvCleared,
    KvEvent,
    KvRemoved,
    KvSnapshot,
    KvStored,
    pack_events,
    unpack_events,
)
from katsura.domain.leases import MemberLease, ShardLoad
from katsura.domain.shape import FfnLayout, Numerics
from katsura.domain.tables import ExpertTable, ExpertTables
from katsura.experts.core.residency import Key, ranges_of
from katsura.experts.core.residency import decide as residency
from katsura.placement.split import COPIES
from katsura.router.core.assign import Layout, assign, table_of
from katsura.router.core.coordinate import Watched, decide
from katsura.router.core.ledger import InFlight
from katsura.router.core.mirror import KvMirror
from katsura.router.core.pick import pick
from katsura.router.core.score import Ask, Candidate, score
from katsura.testing.fleet import DEPLOYMENT, GROUP_BYTES, GROUPS, LAYERS, REVISION, member_record, shard_record

law = settings(deadline=None)
LIFE = Incarnation(1)
CHAIN = [bytes([n]) * 16 for n in range(8)]
SHARDS = [InstanceId(name) for name in "abc"]

pages = st.lists(st.sampled_from(CHAIN), max_size=4).map(tuple)
events = st.one_of(
    st.builds(KvStored, st.sampled_from([b"", *CHAIN[1:]]), pages), st.builds(KvRemoved, pages), st.just(KvCleared())
)
logs = st.lists(st.tuples(st.sampled_from(SHARDS), st.lists(events, max_size=3).map(tuple)), max_size=20)


class Truth:
    """Which pages each shard holds, the plain way."""

    def __init__(self) -> None:
        self.held: dict[InstanceId, set[bytes]] = {shard: set() for shard in SHARDS}

    def apply(self, shard: InstanceId, told: tuple[KvEvent, ...]) -> None:
        for event in told:
            match event:
                case KvStored(_, hashes):
                    self.held[shard].update(hashes)
                case KvRemoved(hashes):
                    self.held[shard].difference_update(hashes)
                case KvCleared():
                    self.held[shard].clear()

    def match(self) -> dict[InstanceId, int]:
        depths = {
            shard: next((n for n, page in enumerate(CHAIN) if page not in held), len(CHAIN))
            for shard, held in self.held.items()
        }
        return {shard: depth for shard, depth in depths.items() if depth}


@law
@given(logs)
def test_a_mirror_knows_what_the_events_told(log: list[tuple[InstanceId, tuple[KvEvent, ...]]]) -> None:
    mirror, truth = KvMirror(), Truth()
    for shard in SHARDS:
        mirror.follow(shard, LIFE)
    counts: Counter[InstanceId] = Counter()
    for shard, told in log:
        counts[shard] += 1
        assert mirror.apply(shard, KvBatch(LIFE, counts[shard], told))
        truth.apply(shard, told)
        assert mirror.match(CHAIN) == truth.match()


@law
@given(st.lists(st.lists(events, max_size=3).map(tuple), max_size=15), st.data())
def test_a_mirror_built_late_from_a_snapshot_equals_one_that_read_everything(
    log: list[tuple[KvEvent, ...]], data: st.DataObject
) -> None:
    shard, truth = SHARDS[0], Truth()
    taken = data.draw(st.integers(0, len(log)), label="snapshot after")
    first_kept = data.draw(st.integers(1, taken + 1), label="first batch kept")
    snapshot = KvSnapshot(LIFE, 0, ())
    for sequence, told in enumerate(log, 1):
        truth.apply(shard, told)
        if sequence == taken:
            snapshot = KvSnapshot(LIFE, sequence, tuple(sorted(truth.held[shard])))
    late = KvMirror()
    late.follow(shard, LIFE)
    kept = [KvBatch(LIFE, n, told) for n, told in enumerate(log, 1) if n >= first_kept]
    if not all(late.apply(shard, batch) for batch in kept):
        assert late.wants(shard, LIFE, snapshot.sequence)
        late.load(shard, snapshot)
        assert all(late.apply(shard, batch) for batch in kept)
    elif first_kept > 1 and not kept:
        return  # Nothing was read, so nothing is known yet: the next batch shows the hole.
    assert late.match(CHAIN) == truth.match()


@law
@given(st.lists(events, max_size=5).map(tuple))
def test_events_survive_their_form_in_bytes(told: tuple[KvEvent, ...]) -> None:
    assert unpack_events(pack_events(told)) == told


loads = st.builds(
    ShardLoad,
    running=st.integers(0, 40),
    waiting=st.integers(0, 40),
    waiting_tokens=st.integers(0, 10_000),
    free_pages=st.integers(0, 200),
    page_count=st.sampled_from([0, 50, 200]),
    step_ms=st.floats(0, 100),
    prefill_tokens_per_s=st.one_of(st.just(0.0), st.floats(1, 1e5)),
)
candidates = st.lists(
    st.builds(
        lambda load, held, ready, tokens: (load, held, ready, InFlight(1 if tokens else 0, tokens)),
        loads,
        st.integers(0, 40),
        st.booleans(),
        st.integers(0, 1000),
    ),
    max_size=6,
)
asks = st.builds(
    Ask,
    prompt_tokens=st.integers(1, 600),
    max_new_tokens=st.integers(0, 300),
    branch_key=st.text(max_size=5),
    home=st.sampled_from([None, (InstanceId("s0"), LIFE)]),
)


def made(drawn: list[tuple[ShardLoad, int, bool, InFlight]]) -> list[Candidate]:
    return [
        Candidate(replace(shard_record(f"s{n}"), load=load, ready=ready), held, in_flight)
        for n, (load, held, ready, in_flight) in enumerate(drawn)
    ]


@law
@given(candidates, asks, st.randoms())
def test_a_choice_depends_on_nothing_but_its_arguments(
    drawn: list[tuple[ShardLoad, int, bool, InFlight]], ask: Ask, dice: object
) -> None:
    some = made(drawn)
    shuffled = some[:]
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    scores = score(some, ask)
    assert score(shuffled, ask) == scores
    if any(not s.excluded_reason for s in scores):
        assert pick(scores, ask) == pick(scores[::-1], ask)


@law
@given(candidates, asks)
def test_a_choice_is_able_finite_and_explained(drawn: list[tuple[ShardLoad, int, bool, InFlight]], ask: Ask) -> None:
    some = made(drawn)
    scores = score(some, ask)
    for found in scores:
        assert min(found.wait_s, found.prefill_s, found.decode_s, found.affinity_s) >= 0
        assert 0 <= found.matched_tokens < ask.prompt_tokens
        assert 0 <= found.cost_s < float("inf")
    able = [c for c in some if c.lease.ready and not (c.lease.load.page_count and _too_large(c, ask))]
    try:
        found_pick = pick(scores, ask)
    except UnavailableError:
        assert able == []
        return
    assert found_pick.chosen.excluded_reason == ""
    assert found_pick.reason.endswith(".")
    assert sorted(s.shard_id for s in found_pick.scores) == sorted(s.shard_id for s in scores)


def _too_large(candidate: Candidate, ask: Ask) -> bool:
    return -(-(ask.prompt_tokens + ask.max_new_tokens) // 16) > candidate.lease.load.page_count


members = st.lists(
    st.tuples(st.integers(0, GROUPS), st.sampled_from(["x", "y"]), st.sampled_from([0.0, 1e-5, 4e-5])), max_size=6
)


def fleet(drawn: list[tuple[int, str, float]], numerics: Numerics) -> list[MemberLease]:
    return [
        replace(
            member_record(f"m{n}", start_ms=n),
            capacity_bytes=room * LAYERS * GROUP_BYTES,
            fingerprint=fingerprint,
            unit_cost_s=cost,
            numerics=numerics,
        )
        for n, (room, fingerprint, cost) in enumerate(drawn)
    ]


@law
@given(members, st.sampled_from(Numerics))
def test_a_layout_serves_every_group_within_everybodys_room(
    drawn: list[tuple[int, str, float]], numerics: Numerics
) -> None:
    some = fleet(drawn, numerics)
    layout = assign(some, None)
    prints = {m.instance_id: m.fingerprint for m in some}
    room = {m.instance_id: m.capacity_bytes // (LAYERS * GROUP_BYTES) for m in some}
    if layout is None:
        usable = sum(room.values()) if numerics is Numerics.FAST else max(_room_by_print(some).values(), default=0)
        assert usable < GROUPS
        return
    held = Counter(layout.primary) + Counter(name for names in layout.alternates for name in names)
    assert all(held[name] <= room[name] for name in held)
    for owner, names in zip(layout.primary, layout.alternates, strict=True):
        assert owner not in names
        assert all(prints[name] == prints[owner] for name in names)
        stand_ins = [n for n in prints if n != owner and prints[n] == prints[owner] and held[n] < room[n]]
        assert names or not stand_ins
    if numerics is Numerics.INVARIANT:
        assert len({prints[name] for name in layout.primary}) == 1


def _room_by_print(some: list[MemberLease]) -> Counter[str]:
    room: Counter[str] = Counter()
    for member in some:
        room[member.fingerprint] += member.capacity_bytes // (LAYERS * GROUP_BYTES)
    return room


def loaded(member: MemberLease, tables: ExpertTables) -> MemberLease:
    newest = tables.prepared or tables.committed
    mine = newest.of(member.instance_id, member.incarnation) if newest else None
    if newest is None or mine is None:
        return member
    ranges = (*mine.primary, *mine.alternate)
    return replace(member, loaded=ranges, prepared_epoch=newest.epoch, loaded_bytes=len(ranges))


@law
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["join", "leave", "load"])), max_size=25))
def test_the_committed_table_is_always_whole_and_epochs_only_grow(play: list[tuple[str, str]]) -> None:
    live: dict[str, MemberLease] = {}
    tables, watched, lives = ExpertTables(DEPLOYMENT, REVISION.revision_id), Watched(), 0
    epochs = [0]
    for now_s, (name, act) in enumerate(play):
        if act == "leave":
            live.pop(name, None)
        elif act == "join" and name not in live:
            lives += 1
            live[name] = member_record(name, incarnation=lives, start_ms=now_s)
        elif act == "load" and name in live:
            live[name] = loaded(live[name], tables)
        decision = decide(list(live.values()), [], tables, watched, float(now_s), patience_s=3.0)
        tables, watched = decision.tables or tables, decision.watched
        if tables.committed is not None:
            assert {g for a in tables.committed.assignments for r in a.primary for g in r.groups} == set(range(GROUPS))
            epochs.append(tables.committed.epoch)
        if tables.prepared is not None:
            assert tables.prepared.epoch > epochs[-1]
    assert epochs == sorted(epochs)
    for _ in range(6):  # left alone, it comes to rest: committed, nothing prepared, everybody named
        live = {name: loaded(member, tables) for name, member in live.items()}
        decision = decide(list(live.values()), [], tables, watched, float(len(play)), patience_s=1e9)
        tables, watched = decision.tables or tables, decision.watched
    if live:
        assert tables.prepared is None
        assert tables.committed is not None
        assert {a.member_id for a in tables.committed.assignments} >= set(live) - {n for n, _ in watched.silent}


@law
@given(members, members)
def test_a_member_that_stays_keeps_what_its_share_allows(
    before: list[tuple[int, str, float]], after: list[tuple[int, str, float]]
) -> None:
    equal = [(GROUPS, "x", 0.0)]
    first = assign(fleet(equal * len(before), Numerics.FAST), None)
    if first is None or not after:
        return
    second = assign(fleet(equal * len(after), Numerics.FAST), _table(first))
    assert second is not None
    kept = sum(a == b for a, b in zip(first.primary, second.primary, strict=True))
    shares_before, shares_after = Counter(first.primary), Counter(second.primary)
    assert kept == sum(min(shares_before[name], shares_after[name]) for name in shares_before)


def _table(layout: Layout) -> ExpertTable:
    cut = FfnLayout(GROUPS, GROUPS)
    return ExpertTable(DEPLOYMENT, REVISION.revision_id, Epoch(1), LAYERS, cut, table_of(layout))


PLAYS = st.lists(st.sampled_from(["lose", "return", "load", "load"]), max_size=25)


class Fleet:
    """Members with room for just their part of two copies, each of which loads and frees as a real one decides to."""

    def __init__(self, count: int, units: int) -> None:
        self.count, self.units, self.lives = count, units, 0
        self.room = ceil(units * min(COPIES, count) / count)
        self.live: dict[str, MemberLease] = {}
        self.held: dict[str, frozenset[Key]] = {}
        self.tables, self.watched = ExpertTables(DEPLOYMENT, REVISION.revision_id), Watched()

    def join(self) -> None:
        self.lives += 1
        name = f"m{self.lives}"
        cut = FfnLayout(self.units, self.units)
        bytes_ = self.room * LAYERS * GROUP_BYTES
        self.live[name] = replace(member_record(name, start_ms=self.lives), layout=cut, capacity_bytes=bytes_)
        self.held[name] = frozenset()

    def lose(self, which: int) -> None:
        name = sorted(self.live)[which % len(self.live)]
        del self.live[name]

    def look(self) -> None:
        decision = decide(list(self.live.values()), [], self.tables, self.watched, 0.0, patience_s=1e9)
        self.tables, self.watched = decision.tables or self.tables, decision.watched

    def load(self) -> None:
        """Every member frees what it may, then loads what it must: never more than it has room for."""
        for name, lease in self.live.items():
            room = self.room * LAYERS
            now = residency(self.tables, lease.instance_id, lease.incarnation, self.held[name], frozenset(), room)
            held = self.held[name].difference(now.free)
            if len(held | set(now.load)) <= room:
                held |= set(now.load)
            self.held[name] = held
            now = residency(self.tables, lease.instance_id, lease.incarnation, held, frozenset(), room)
            self.live[name] = replace(
                lease,
                loaded=ranges_of(held),
                loaded_bytes=len(held) * GROUP_BYTES,
                prepared_epoch=now.prepared_epoch,
                serving_epoch=now.serving_epoch,
            )

    def settle(self) -> None:
        for _ in range(4 * self.units + 8):
            self.look()
            self.load()


@law
@given(st.integers(2, 9), st.integers(1, 8), PLAYS, st.data())
def test_a_planned_pool_comes_back_to_two_copies_of_everything_whatever_it_lost(
    count: int, units: int, play: list[str], data: st.DataObject
) -> None:
    fleet_ = Fleet(count, units)
    for _ in range(count):
        fleet_.join()
    fleet_.settle()
    for act in play:
        if act == "lose" and len(fleet_.live) > 1:
            fleet_.lose(data.draw(st.integers(0, 99), label="who"))
        elif act == "return" and len(fleet_.live) < count:
            fleet_.join()
        fleet_.look()
        if act == "load":
            fleet_.load()
    while len(fleet_.live) < count:
        fleet_.join()
    fleet_.settle()
    table = fleet_.tables.committed
    assert fleet_.tables.prepared is None
    assert table is not None
    for group in range(units):
        primary = table.primary(0, group)
        assert primary is not None
        names = {primary.member_id, *(a.member_id for a in table.alternates(0, group))}
        assert len(names) == COPIES
        assert names <= fleet_.live.keys()


@law
@given(st.integers(2, 9), st.integers(1, 8), st.integers(0, 99))
def test_a_planned_pool_that_lost_one_member_serves_on_with_what_the_others_have(
    count: int, units: int, who: int
) -> None:
    fleet_ = Fleet(count, units)
    for _ in range(count):
        fleet_.join()
    fleet_.settle()
    fleet_.lose(who)
    for _ in range(20):
        fleet_.look()
        fleet_.load()
        assert all(lease.serving_epoch for lease in fleet_.live.values())
    table = fleet_.tables.committed
    assert fleet_.tables.prepared is None
    assert table is not None
    assert {a.member_id for a in table.assignments} == fleet_.live.keys()
