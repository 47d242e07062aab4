"""Who may write: a Lease of coordination.k8s.io, decided purely.

Clocks of two machines differ, so only the own monotonic clock counts: a lease is over when it has not changed for its
duration *as seen here*. The holder stops writing at `writes_until`, well before anybody else may take the lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from katsura_operator.core.objects import LEASE, Object

LEASE_S: Final = 15.0
RENEW_S: Final = 3.0
MARGIN_S: Final = 5.0
"""Between the last write of an old holder and the first of a new one: the longest that a request may be under way."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What one candidate knows. Times are its monotonic clock.

    Attributes:
        seen_version: resourceVersion of the lease when it last changed; seen_at_s: when that was.
        writes_until_s: when this candidate must stop writing; 0 where it does not hold the lease.
    """

    seen_version: str = ""
    seen_at_s: float = 0.0
    writes_until_s: float = 0.0

    def may_write(self, now_s: float) -> bool:
        """Whether a write may start now."""
        return now_s < self.writes_until_s


def observe(standing: Standing, lease: Object | None, now_s: float) -> Standing:
    """Note when the lease changed last."""
    version = "" if lease is None else str(lease["metadata"]["resourceVersion"])
    if version == standing.seen_version and lease is not None:
        return standing
    return Standing(version, now_s, standing.writes_until_s)


def may_take(standing: Standing, lease: Object | None, identity: str, now_s: float) -> bool:
    """Whether to ask for the lease: nobody has it, we have it, or its holder was silent for its whole duration."""
    if lease is None:
        return True
    spec = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    if holder in ("", identity):
        return True
    return now_s - standing.seen_at_s >= float(spec.get("leaseDurationSeconds") or LEASE_S)


def claim(lease: Object | None, namespace: str, name: str, identity: str, now: str) -> dict[str, Any]:
    """The lease as this candidate writes it; a change of holder is a transition. `now`: RFC 3339, microseconds."""
    spec: Mapping[str, Any] = (lease or {}).get("spec") or {}
    same = spec.get("holderIdentity") == identity
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if lease is not None:
        metadata |= {key: lease["metadata"][key] for key in ("uid", "resourceVersion")}
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.name,
        "metadata": metadata,
        "spec": {
            "holderIdentity": identity,
            "leaseDurationSeconds": int(LEASE_S),
            "acquireTime": spec.get("acquireTime", now) if same else now,
            "renewTime": now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if same or lease is None else 1),
        },
    }


def renewed(version: str, asked_at_s: float) -> Standing:
    """After a claim was taken; it counts from when it was sent."""
    return Standing(version, asked_at_s, asked_at_s + LEASE_S - MARGIN_S)


def released(lease: Object) -> dict[str, Any]:
    """The lease given back: the next candidate need not wait."""
    return {**lease, "spec": {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
