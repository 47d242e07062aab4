"""Which revision new sequences take, and the endpoint table that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from katsura.domain.ids import DeploymentName, Epoch
from katsura.domain.leases import Revision, ShardLease
from katsura.domain.tables import EndpointTable, ShardEndpoint


def current_revision(leases: Sequence[ShardLease], current: Revision | None) -> Revision:
    """The revision of new sequences among the live shards of one deployment.

    Traffic moves to a newer revision (its first shard started later) when that one has as many ready shards as the
    current one, or when the current one has none left. `leases` must not be empty where `current` is None.
    """
    ready: dict[str, int] = {}
    started: dict[str, int] = {}
    revisions: dict[str, Revision] = {current.revision_id: current} if current else {}
    for lease in sorted(leases, key=lambda found: found.start_ms):
        name = lease.revision.revision_id
        revisions[name] = lease.revision
        started.setdefault(name, lease.start_ms)
        ready[name] = ready.get(name, 0) + (lease.ready and not lease.draining)
    best = current.revision_id if current else min(started, key=lambda name: (-ready[name], started[name], name))
    for name in sorted(started, key=lambda name: (started[name], name)):
        newer = started[name] > started.get(best, -1)
        if (newer and ready[name] >= max(ready.get(best, 0), 1)) or (ready[name] and not ready.get(best, 0)):
            best = name
    return revisions[best]


def describe(deployment: DeploymentName, leases: Sequence[ShardLease], table: EndpointTable | None) -> EndpointTable:
    """A deployment as its live shards and its last table show it, in that epoch. One of the two must be there."""
    revision = current_revision(leases, table.revision if table else None)
    mine = [lease for lease in leases if lease.revision.revision_id == revision.revision_id]
    ready = sorted((lease for lease in mine if lease.ready and not lease.draining), key=lambda found: found.instance_id)
    newest = max(mine, key=lambda lease: (lease.start_ms, lease.instance_id), default=None)
    named = newest or table
    assert named is not None, "a deployment comes from a lease or a table"
    return EndpointTable(
        deployment=deployment,
        epoch=table.epoch if table else Epoch(0),
        revision=revision,
        aliases=named.aliases,
        model_path=named.model_path,
        create_ms=min([lease.start_ms for lease in leases] + ([table.create_ms] if table else [])),
        shards=tuple(ShardEndpoint(lease.instance_id, lease.incarnation, lease.address) for lease in ready),
    )


def plan_endpoints(
    deployment: DeploymentName, leases: Sequence[ShardLease], table: EndpointTable | None
) -> EndpointTable | None:
    """The table as it should be, one epoch on, or None where it stands as it is."""
    wanted = describe(deployment, leases, table)
    return None if wanted == table else replace(wanted, epoch=Epoch(wanted.epoch + 1))
