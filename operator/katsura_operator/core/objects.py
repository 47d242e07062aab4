"""Kubernetes objects as plain data: which kinds the operator touches, their addresses, and the parts that all share.

An object is the parsed JSON of the API server. `kube` turns a `Kind` into a URL; everything else here is read by the
rest of `core`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from katsura.manifests.cluster import ROLE_LABEL
from katsura.manifests.kinds import API_VERSION

Object = Mapping[str, Any]

MANAGER: Final = "katsura-operator"
"""Field manager of everything that the operator keeps as it is."""
SEEDER: Final = "katsura-operator-seed"
"""Field manager of what it writes once and leaves to others."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
PART_OF: Final = "app.kubernetes.io/part-of"
POOL: Final = "katsura.dev/pool"
DEPLOYMENT: Final = "katsura.dev/deployment"
STORE: Final = "katsura.dev/store"
REVISION: Final = "katsura.dev/revision"
NODE_CLASS: Final = "katsura.dev/node-class"
APPLIED: Final = "katsura.dev/applied"
"""Annotation: digest of what was applied last. It differs when a field was taken away."""
SEEDED: Final = "katsura.dev/seeded"
"""Annotation of a RolePool: the count that it was given first; another one is somebody's wish."""
DRAINING: Final = "katsura.dev/draining"
"""Annotation of a pod: since when it drains, RFC 3339."""
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
ROLE: Final = ROLE_LABEL


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object and where the API server keeps it."""

    api_version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """API group; empty for the core."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """URL path; without a namespace all of them."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        parts = (root + scope, self.plural, name, subresource)
        return "/".join(part for part in parts if part)


MODEL_DEPLOYMENT: Final = Kind(API_VERSION, "ModelDeployment", "modeldeployments")
PROFILE: Final = Kind(API_VERSION, "AcceleratorProfile", "acceleratorprofiles", namespaced=False)
MEMORY_STORE: Final = Kind(API_VERSION, "MemoryStore", "memorystores")
AGENT: Final = Kind(API_VERSION, "Agent", "agents")
ROLE_POOL: Final = Kind(API_VERSION, "RolePool", "rolepools")
PLAN: Final = Kind(API_VERSION, "PlacementPlan", "placementplans")
WORKLOAD: Final = Kind("apps/v1", "Deployment", "deployments")
SERVICE: Final = Kind("v1", "Service", "services")
BUDGET: Final = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
POLICY: Final = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
JOB: Final = Kind("batch/v1", "Job", "jobs")
SECRET: Final = Kind("v1", "Secret", "secrets")
POD: Final = Kind("v1", "Pod", "pods")
NODE: Final = Kind("v1", "Node", "nodes", namespaced=False)
SLICE: Final = Kind("resource.k8s.io/v1", "ResourceSlice", "resourceslices", namespaced=False)
EVENT: Final = Kind("events.k8s.io/v1", "Event", "events")
LEASE: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
OURS: Final = (MODEL_DEPLOYMENT, MEMORY_STORE, AGENT, ROLE_POOL, PLAN)
CHILDREN: Final = (WORKLOAD, SERVICE, BUDGET, POLICY, JOB)
ALL: Final = (*OURS, PROFILE, *CHILDREN, SECRET, POD, NODE, SLICE, EVENT, LEASE)
BY_NAME: Final[Mapping[tuple[str, str], Kind]] = {(k.api_version, k.name): k for k in ALL}


def kind_of(obj: Object) -> Kind:
    """The kind of an object that says what it is."""
    return BY_NAME[obj["apiVersion"], obj["kind"]]


def name_of(obj: Object) -> str:
    """Its name."""
    return str(obj["metadata"]["name"])


def namespace_of(obj: Object) -> str:
    """Its namespace; empty where it has none."""
    return str(obj["metadata"].get("namespace", ""))


def labels_of(obj: Object) -> Mapping[str, str]:
    """Its labels."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: Object) -> Mapping[str, str]:
    """Its annotations."""
    return obj["metadata"].get("annotations") or {}


def key_of(obj: Object) -> tuple[str, str, str]:
    """(kind, namespace, name): equal for what is seen and what is wanted."""
    return str(obj["kind"]), namespace_of(obj), name_of(obj)


def condition_of(obj: Object, kind: str) -> Object:
    """One condition of its status; empty where it has none."""
    found = (obj.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c.get("type") == kind), {})


def is_true(obj: Object, kind: str) -> bool:
    """Whether a condition holds."""
    return bool(condition_of(obj, kind).get("status") == "True")


def is_ending(obj: Object) -> bool:
    """Whether it was deleted and only finishes its work."""
    return "deletionTimestamp" in obj["metadata"]


def replicas_of(obj: Object, default: int = 1) -> int:
    """Its `spec.replicas`; `default` where it says nothing."""
    said = (obj.get("spec") or {}).get("replicas")
    return default if said is None else int(said)


def number(value: Any) -> float | None:
    """A finite number; None for everything else that JSON can hold."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if known else None


def moment(text: Any) -> datetime | None:
    """RFC 3339, by UTC where it names no zone; None for what is no time."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def owner(obj: Object) -> list[dict[str, Any]]:
    """Owner references of a child of `obj`: the API server ends it with its owner."""
    return [
        {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "name": name_of(obj),
            "uid": obj["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def make(
    kind: Kind, namespace: str, name: str, *, labels: Mapping[str, str], owner_of: Object | None
) -> dict[str, Any]:
    """The head of a child; its content is added by the caller."""
    metadata: dict[str, Any] = {"name": name, "labels": {MANAGED_BY: MANAGER, PART_OF: "katsura", **labels}}
    if namespace:
        metadata["namespace"] = namespace
    if owner_of is not None:
        metadata["ownerReferences"] = owner(owner_of)
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}


def digest(*parts: object, length: int = 10) -> str:
    """A short name for content: equal content, equal name."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def by_key(objects: Iterable[Object]) -> dict[tuple[str, str, str], Object]:
    """Objects by `key_of`."""
    return {key_of(obj): obj for obj in objects}
