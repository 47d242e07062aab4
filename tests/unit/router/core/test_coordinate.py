from dataclasses import replace

from katsura.domain.ids import Epoch, Incarnation
from katsura.domain.leases import MemberLease, ShardLease
from katsura.domain.tables import ExpertTables
from katsura.router.core.coordinate import Decision, Watched, decide
from katsura.testing.fleet import DEPLOYMENT, GROUP_BYTES, LAYERS, REVISION, member_record, shard_record

NOTHING = ExpertTables(DEPLOYMENT, REVISION.revision_id)
PATIENCE_S = 10.0


class Play:
    """Looks, one after another, with what each left."""

    def __init__(self) -> None:
        self.tables = NOTHING
        self.watched = Watched()

    def look(self, members: list[MemberLease], now_s: float = 0.0, shards: list[ShardLease] | None = None) -> Decision:
        decision = decide(members, shards or [], self.tables, self.watched, now_s, PATIENCE_S)
        self.watched = decision.watched
        self.tables = decision.tables or self.tables
        return decision

    def commit(self, members: list[MemberLease]) -> list[MemberLease]:
        """Prepare, let everybody load, commit; the members as they then are."""
        self.look(members)
        done = [loaded(member, self) for member in members]
        self.look(done)
        assert self.tables.committed is not None
        assert self.tables.prepared is None
        return done


def loaded(member: MemberLease, play: Play) -> MemberLease:
    table = play.tables.prepared or play.tables.committed
    assert table is not None
    mine = table.of(member.instance_id, member.incarnation)
    assert mine is not None
    ranges = (*mine.primary, *mine.alternate)
    size = sum(len(r.groups) * LAYERS for r in ranges) * GROUP_BYTES
    return replace(member, loaded=ranges, loaded_bytes=size, prepared_epoch=table.epoch)


A, B, C = (member_record(name, start_ms=order) for order, name in enumerate("abc"))


def names(play: Play) -> tuple[str, str]:
    tables = play.tables.committed, play.tables.prepared
    return tuple("".join(a.member_id for a in t.assignments) if t else "" for t in tables)  # type: ignore[return-value]


def test_a_table_is_prepared_then_committed_when_every_member_has_loaded_it() -> None:
    play = Play()
    play.look([A, B])
    assert names(play) == ("", "ab")
    first = loaded(A, play)
    assert play.look([first, B]).reason == "1 of 2 members still load"
    assert names(play) == ("", "ab")
    play.look([first, loaded(B, play)])
    assert names(play) == ("ab", "")
    assert play.tables.committed is not None
    assert play.tables.committed.epoch == 1


def test_a_table_that_stands_is_not_written_again() -> None:
    play = Play()
    members = play.commit([A, B])
    decision = play.look(members)
    assert (decision.tables, decision.reason) == (None, "epoch 1 stands")


def test_without_room_for_every_group_there_is_no_table() -> None:
    small = replace(A, capacity_bytes=GROUP_BYTES)
    decision = Play().look([small])
    assert (decision.tables, decision.reason) == (None, "1 members cannot hold every group")


def test_a_lost_member_is_replaced_under_the_next_epoch_while_the_old_table_stays() -> None:
    play = Play()
    a, _ = play.commit([A, B])
    play.look([a])
    assert names(play) == ("ab", "a")
    assert play.tables.prepared is not None
    assert play.tables.prepared.epoch == 2
    play.look([loaded(a, play)])
    assert names(play) == ("a", "")


def test_a_reborn_member_is_named_by_its_new_life() -> None:
    play = Play()
    a, _ = play.commit([A, B])
    reborn = replace(B, incarnation=Incarnation(2), start_ms=9)
    play.look([a, reborn])
    assert names(play) == ("ab", "ab")
    assert play.tables.prepared is not None
    assert [x.incarnation for x in play.tables.prepared.assignments] == [1, 2]
    assert play.tables.committed is not None
    assert play.tables.prepared.assignments[0].primary == play.tables.committed.assignments[0].primary


def test_a_member_that_dies_while_loading_is_planned_around() -> None:
    play = Play()
    play.look([A, B])
    play.look([A])
    assert names(play) == ("", "a")
    assert play.tables.prepared is not None
    assert play.tables.prepared.epoch == 2


def test_a_prepared_table_that_lost_its_cause_is_withdrawn() -> None:
    play = Play()
    a, b = play.commit([A, B])
    play.look([a, b, C])
    assert names(play) == ("ab", "abc")
    play.look([a, b])
    assert names(play) == ("ab", "")


def test_a_member_that_joins_meanwhile_waits_for_the_next_epoch() -> None:
    play = Play()
    play.look([A])
    assert play.look([A, B]).tables is None
    a = loaded(A, play)
    play.look([a, B])
    assert names(play) == ("a", "")
    play.look([a, B])
    assert names(play) == ("a", "ab")


def test_a_member_that_loads_nothing_for_too_long_is_left_out_until_it_moves_or_is_reborn() -> None:
    play = Play()
    play.look([A, B], now_s=0.0)
    play.look([A, B], now_s=1.0)
    a = loaded(A, play)
    assert play.look([a, B], now_s=PATIENCE_S + 1.0).tables is None
    decision = play.look([a, B], now_s=PATIENCE_S + 1.1)
    assert decision.reason == "b loaded nothing for 10 s: preparing epoch 2"
    assert names(play) == ("", "a")
    a = loaded(a, play)
    play.look([a, B], now_s=20.0)
    assert names(play) == ("a", "")
    assert play.look([a, B], now_s=21.0).tables is None
    play.look([a, replace(B, loaded_bytes=5)], now_s=22.0)
    assert names(play) == ("a", "ab")


def test_progress_buys_time() -> None:
    play = Play()
    play.look([A, B], now_s=0.0)
    for now_s in (1.0, 9.0, 17.0, 25.0):
        both = [replace(m, loaded_bytes=int(now_s)) for m in (A, B)]
        assert play.look(both, now_s=now_s).reason == "2 of 2 members still load"


def test_a_silent_member_that_cannot_be_done_without_is_waited_for() -> None:
    play = Play()
    half = 4 * LAYERS * GROUP_BYTES
    a, b = replace(A, capacity_bytes=half), replace(B, capacity_bytes=half)
    play.look([a, b], now_s=0.0)
    play.look([a, b], now_s=1.0)
    assert play.look([loaded(a, play), b], now_s=100.0).tables is None
    assert play.watched.silent == frozenset()
    play.look([loaded(a, play), loaded(b, play)], now_s=101.0)
    assert names(play) == ("ab", "")


def test_a_silent_member_is_tried_again_when_the_others_are_gone() -> None:
    play = Play()
    play.look([A, B], now_s=0.0)
    play.look([A, B], now_s=1.0)
    play.look([loaded(A, play), B], now_s=100.0)
    assert names(play) == ("", "a")
    play.look([B], now_s=101.0)
    assert names(play) == ("", "b")


def test_a_draining_member_is_replaced_only_where_the_others_can_hold_everything() -> None:
    play = Play()
    a, b = play.commit([A, B])
    play.look([a, replace(b, draining=True)])
    assert names(play) == ("ab", "a")
    play = Play()
    half = 4 * LAYERS * GROUP_BYTES
    a, b = play.commit([replace(A, capacity_bytes=half), replace(B, capacity_bytes=half)])
    assert play.look([a, replace(b, draining=True)]).tables is None
    assert names(play) == ("ab", "")


def test_an_epoch_is_newer_than_all_that_anybody_has_seen_even_where_the_tables_were_lost() -> None:
    play = Play()
    seen = replace(shard_record("s"), epoch=Epoch(7))
    play.look([replace(A, prepared_epoch=Epoch(8), serving_epoch=Epoch(9))], shards=[seen])
    assert play.tables.prepared is not None
    assert play.tables.prepared.epoch == 10
