"""Whether an event of a watch means anything to us: heartbeats and our own words do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from katsura_operator.core.objects import Object, condition_of, digest, is_ending

_STATUS: Final[Mapping[str, tuple[str, ...]]] = {
    "Deployment": ("observedGeneration", "replicas", "updatedReplicas", "readyReplicas"),
    "Pod": ("phase", "podIP"),
    "Job": ("failed",),
    "Node": ("allocatable",),
}
_SPEC: Final[Mapping[str, tuple[str, ...]]] = {"Pod": ("nodeName",), "Node": ("unschedulable", "taints")}


def signature(obj: Object) -> str:
    """A digest of everything that a pass would read of this object: equal signatures, nothing to do."""
    kind, metadata = str(obj["kind"]), obj["metadata"]
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    read: dict[str, Any] = {key: metadata.get(key) for key in ("uid", "labels", "annotations")}
    read["ending"] = is_ending(obj)
    read["spec"] = {k: spec.get(k) for k in _SPEC[kind]} if kind in _SPEC else spec
    read["status"] = {k: status.get(k) for k in _STATUS.get(kind, ())}
    read["ready"] = [condition_of(obj, name).get("status") for name in ("Ready", "PodScheduled", "Complete")]
    return digest(read, length=16)
