"""What the operator is told once and every decision may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from katsura.placement.calibration import read_devices
from katsura.placement.cost import Coefficients


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one installation.

    Attributes:
        namespace: the operator's own; the authority and the plans live there.
        services_image: of memory and router pods; engine_image: of shards, members and engines.
        secret: Secret of a served namespace with `store-url`, `internal-token` and optionally `hints-url`.
        account: ServiceAccount of pods; it has no rights.
        nodes_observed: plans use the cluster's Nodes; else the inventories of AcceleratorProfiles.
        overcommit: planned cores per core of a node: above 1 for demonstrations on small machines.
        wire_version: of the data plane; part of every revision.
        plans_kept: PlacementPlans that are kept.
        fs_group: group that volumes of claims are given to, so that pods may write them; None where the platform does.
        dns: namespaces of the cluster's DNS, and CIDRs of its caches. Where it is known, pods of external engines get a
            NetworkPolicy.
        tracing: `NAME=value` of OpenTelemetry's variables, which every pod of ours gets as the operator has them.
        calibration: what `katsura calibrate` wrote for devices of this cluster; empty for none.
    """

    namespace: str
    services_image: str
    engine_image: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    secret: str = "katsura"
    account: str = "katsura-pods"
    nodes_observed: bool = False
    overcommit: float = 1.0
    wire_version: int = 1
    plans_kept: int = 5
    fs_group: int | None = None
    dns: tuple[str, ...] = ()
    calibration: str = ""
    tracing: tuple[str, ...] = ()

    def measured(self) -> Mapping[str, Coefficients]:
        """Coefficients by device. InvalidArgumentError: `calibration` is not what `katsura calibrate` writes."""
        return _measured(self.calibration)


@cache
def _measured(text: str) -> Mapping[str, Coefficients]:
    return MappingProxyType(read_devices(text) if text else {})
