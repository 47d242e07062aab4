"""Tables that the coordinator alone writes and the data plane follows.

An expert table is born PREPARED: every member named in it loads what it gives and says so in its lease. When all have,
it is COMMITTED and shards turn to it between two steps. The data plane goes on with its last epoch when nobody writes.
"""

from __future__ import annotations

from dataclasses import dataclass

from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange, Revision
from katsura.domain.shape import FfnLayout


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one member serves.

    Attributes:
        member_id: the process; incarnation: the life that the table was made for; rank: index in the table.
        data_endpoints: where frames go, best first; fingerprint: as in its lease.
        primary: served by default; alternate: served when their primary is lost or overloaded.
    """

    member_id: InstanceId
    incarnation: Incarnation
    rank: int
    data_endpoints: tuple[str, ...]
    fingerprint: str
    primary: tuple[GroupRange, ...]
    alternate: tuple[GroupRange, ...] = ()

    def holds(self, layer: int, group: int) -> bool:
        """Whether it has (layer, group) loaded, in either role."""
        return any(r.covers(layer, group) for r in (*self.primary, *self.alternate))


@dataclass(frozen=True, slots=True)
class ExpertTable:
    """Which member serves what, in one epoch; `assignments` stand by rank."""

    deployment: DeploymentName
    revision_id: str
    epoch: Epoch
    layer_count: int
    layout: FfnLayout
    assignments: tuple[Assignment, ...]

    def primary(self, layer: int, group: int) -> Assignment | None:
        """Who serves (layer, group) by default."""
        return next((a for a in self.assignments if any(r.covers(layer, group) for r in a.primary)), None)

    def alternates(self, layer: int, group: int) -> tuple[Assignment, ...]:
        """Who may stand in for the primary of (layer, group), by rank."""
        return tuple(a for a in self.assignments if any(r.covers(layer, group) for r in a.alternate))

    def of(self, member_id: InstanceId, incarnation: Incarnation) -> Assignment | None:
        """What this life of a member has to hold."""
        return next((a for a in self.assignments if (a.member_id, a.incarnation) == (member_id, incarnation)), None)


@dataclass(frozen=True, slots=True)
class ExpertTables:
    """The two phases of one (deployment, revision): `committed` is in use, `prepared` is being loaded."""

    deployment: DeploymentName
    revision_id: str
    committed: ExpertTable | None = None
    prepared: ExpertTable | None = None


@dataclass(frozen=True, slots=True)
class ShardEndpoint:
    """Where one life of a shard answers."""

    shard_id: InstanceId
    incarnation: Incarnation
    address: str


@dataclass(frozen=True, slots=True)
class EndpointTable:
    """A deployment as clients may choose it: the revision that new sequences take, and its ready shards by id.

    `create_ms` is the wall clock of the first shard that ever registered, in milliseconds since the Unix epoch.
    """

    deployment: DeploymentName
    epoch: Epoch
    revision: Revision
    aliases: tuple[str, ...]
    model_path: str
    create_ms: int
    shards: tuple[ShardEndpoint, ...]
