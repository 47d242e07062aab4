from dataclasses import replace

import pytest

from katsura.domain.ids import Epoch, Incarnation, InstanceId
from katsura.domain.leases import ShardLease
from katsura.domain.tables import EndpointTable, ShardEndpoint
from katsura.router.core.endpoints import current_revision, plan_endpoints
from katsura.testing.fleet import DEPLOYMENT, REVISION, shard_record

NEW = replace(REVISION, revision_id="rev-2")


def shard(name: str, revision: str = "rev-1", start_ms: int = 1000, ready: bool = True) -> ShardLease:
    lease = replace(shard_record(name, start_ms=start_ms), ready=ready)
    return replace(lease, revision=replace(REVISION, revision_id=revision))


TABLE = EndpointTable(
    DEPLOYMENT,
    Epoch(4),
    REVISION,
    ("tiny",),
    "models/demo",
    1000,
    (ShardEndpoint(InstanceId("a"), Incarnation(1), "unix:/run/a"),),
)


def test_the_first_table_has_epoch_one_and_the_ready_shards_by_id() -> None:
    leases = [shard("b", start_ms=900), shard("a"), shard("c", ready=False)]
    table = plan_endpoints(DEPLOYMENT, leases, None)
    assert table is not None
    assert (table.epoch, table.create_ms, [s.shard_id for s in table.shards]) == (1, 900, ["a", "b"])
    assert (table.revision, table.aliases, table.model_path) == (REVISION, ("tiny",), "models/demo")


def test_a_table_that_is_right_is_not_written_again() -> None:
    busy = shard("a")
    busy = replace(busy, load=replace(busy.load, running=9), put_ms=77)
    assert plan_endpoints(DEPLOYMENT, [busy], TABLE) is None


@pytest.mark.parametrize(
    "leases",
    [
        [],
        [shard("a", ready=False)],
        [shard("a"), shard("b")],
        [replace(shard("a"), incarnation=Incarnation(2))],
        [replace(shard("a"), aliases=("tiny", "small"))],
        [replace(shard("a"), draining=True)],
    ],
)
def test_every_change_of_the_fleet_is_a_new_epoch(leases: list[ShardLease]) -> None:
    table = plan_endpoints(DEPLOYMENT, leases, TABLE)
    assert table is not None
    assert (table.epoch, table.create_ms) == (5, 1000)


# Shards of rev-1 (current) and of rev-2 (later), each as ready flags; and where new sequences go.
@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([True], [], "rev-1"),
        ([True], [False], "rev-1"),
        ([True, True], [True], "rev-1"),
        ([True, True], [True, True], "rev-2"),
        ([False], [True], "rev-2"),
        ([], [True], "rev-2"),
        ([], [False], "rev-1"),
        ([False], [False], "rev-1"),
    ],
)
def test_traffic_moves_to_a_newer_revision_when_it_can_carry_it(
    old: list[bool], new: list[bool], expected: str
) -> None:
    leases = [shard(f"o{n}", "rev-1", 1000, ready) for n, ready in enumerate(old)]
    leases += [shard(f"n{n}", "rev-2", 2000, ready) for n, ready in enumerate(new)]
    assert current_revision(leases, REVISION).revision_id == expected


def test_traffic_stays_with_a_newer_revision_while_it_lives() -> None:
    leases = [shard("o1"), shard("o2"), shard("n1", "rev-2", 2000)]
    assert current_revision(leases, NEW).revision_id == "rev-2"
    assert current_revision(leases[:2], NEW).revision_id == "rev-1"


def test_without_a_table_the_revision_with_most_ready_shards_is_taken() -> None:
    leases = [shard("o1", ready=False), shard("n1", "rev-2", 2000)]
    assert current_revision(leases, None).revision_id == "rev-2"
