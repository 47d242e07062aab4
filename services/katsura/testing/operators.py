"""An operator for tests: real passes against a real API server, one at a time, with a clock and a kubelet of ours."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import yaml

from katsura.manifests.kinds import API_VERSION
from katsura.testing.apiserver import ApiServer, TwinKube
from katsura.testing.kube import OPERATOR, ControlPlane
from katsura_operator.authority import Authority
from katsura_operator.core.decision import decide
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import ALL, JOB, POD, WORKLOAD, Kind, condition_of, labels_of, name_of
from katsura_operator.core.pace import Count, sample_of, shards_of
from katsura_operator.core.pods import GRPC
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Sample, Snapshot
from katsura_operator.execute import Executor, Outcome
from katsura_operator.kube import Kube
from katsura_operator.reconcile import Reconciler

_KINDS: Final[Mapping[str, Kind]] = {kind.name: kind for kind in ALL}
_PASSES_MAX: Final = 12
_JOB_ENDS: Final = ("SuccessCriteriaMet", "Complete")


class Crash(Exception):  # noqa: N818  # what happens, not what went wrong
    """The operator's process is gone."""


class CrashingKube(Kube):
    """A door whose process dies right after its `last`-th write reached the API server."""

    def __init__(self, door: Kube, last: int) -> None:
        super().__init__(door._api, door.fence)
        self._door, self._last = door, last

    async def _write(self, method: str, path: str, body: Any, content: str, query: Mapping[str, str]) -> dict[str, Any]:
        made = await super()._write(method, path, body, content, query)
        if self.writes >= self._last:
            raise Crash(f"{method} {path}")
        return made

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        return await self._door._ask(method, path, query, body, content)


def grant(plane: ControlPlane, namespace: str, file: Path) -> None:
    """Bind the rights that the chart ships (`files/operator-rules.yaml`) to the operator's user."""
    rules = yaml.safe_load(file.read_text())
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": OPERATOR}
    scopes = (("served", "namespaced"), ("own", "own"), ("katsura-profiles", "profiles"), ("katsura-nodes", "cluster"))
    for name, scope in scopes:
        wide = scope in ("profiles", "cluster")
        where = rbac if wide else f"{rbac}/namespaces/{namespace}"
        kind = "ClusterRole" if wide else "Role"
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
        plane.apply(f"{where}/{kind.lower()}s/{name}", {**head, "kind": kind, "rules": rules[scope]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        binding = {**head, "kind": f"{kind}Binding", "roleRef": reference, "subjects": [subject]}
        plane.apply(f"{where}/{kind.lower()}bindings/{name}", binding)


class World:
    """One namespace, its operator, and what a cluster's controllers would do in it."""

    def __init__(
        self, plane: ControlPlane | ApiServer, namespace: str, kube: Kube, settings: Settings | None = None
    ) -> None:
        self.plane: Any = plane
        self.namespace, self.kube = namespace, kube
        self.namespaces: tuple[str, ...] = (namespace,)
        """Which its operator serves; none: all."""
        self.settings = settings or Settings(namespace, "services:1", "engine:1")
        self.drained: list[tuple[str, str]] = []
        self.now = "2026-11-21T12:00:00Z"
        self.samples: tuple[Sample, ...] = ()
        """What running shards showed."""
        self.odd: tuple[str, ...] = ()
        """Uids of members that compute other bits than the rest of their pool."""
        self.job_trouble = ""
        """Why Jobs fail; empty where they succeed."""

    @classmethod
    def in_memory(cls, settings: Settings | None = None) -> Self:
        """A namespace of an `ApiServer` of its own: no rights, no schemas, and a hundred passes a second."""
        server = ApiServer()
        return cls(server, settings.namespace if settings else "space", TwinKube(server), settings)

    async def drain(self, role: str, address: str) -> None:
        """Note who was told to drain (`execute.Drainer`)."""
        self.drained.append((role, address))

    def reconciler(self, kube: Kube | None = None) -> Reconciler:
        """A fresh operator, as after a restart."""
        door = kube or self.kube
        authority = Authority(door, self.settings.namespace)
        executor = Executor(door, self, GRPC)
        return Reconciler(
            *(door, executor, authority, self, self.settings, self.namespaces),
            now=lambda: self.now,
            sampled=lambda pods: self.samples,
            odd=lambda: self.odd,
        )

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        """In this process, for thousands of passes (`reconcile.Mind`)."""
        return decide(seen, self.settings, trouble)

    def show(
        self, deployment: str, step_s: float, *, batch: float = 8.0, context: float = 500.0, looks: int = 6
    ) -> None:
        """Let the running shards of a deployment have shown such decode steps."""
        labels = {"katsura.dev/deployment": deployment}
        pod = next(p for p in self.all("Pod") if labels.items() <= labels_of(p).items())
        pod = {**pod, "status": {**pod["status"], "podIP": "10.0.0.1"}}
        (shard,) = shards_of([pod])
        count = Count(1, 100, 100 * step_s, round(100 * batch), round(100 * batch * context))
        sample = sample_of(shard, Count(1, 0, 0.0, 0, 0), count)
        assert sample is not None
        self.samples = (sample,) * looks

    async def settle(self, *, kubelet: bool = True) -> list[Outcome]:
        """Passes, and a kubelet's answers between them, until a pass writes nothing."""
        outcomes = []
        for _ in range(_PASSES_MAX):
            outcomes.append(await self.reconciler().run())
            changed = self.run_pods() if kubelet else False
            if not changed and outcomes[-1].writes == 0:
                return outcomes
        raise AssertionError(f"{_PASSES_MAX} passes and still writing: {outcomes}")

    def apply(self, kind: str, name: str, spec: Mapping[str, Any], manager: str = "person") -> Any:
        """What a person would apply."""
        where = _KINDS[kind].path(self.namespace, name)
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        return self.plane.apply(where, body, manager)

    def get(self, kind: str, name: str) -> Any:
        """One object."""
        return self.plane.call("GET", _KINDS[kind].path(self.namespace, name))

    def delete(self, kind: str, name: str) -> None:
        """Delete one object."""
        self.plane.call("DELETE", _KINDS[kind].path(self.namespace, name))

    def all(self, kind: str, namespace: str | None = None) -> Sequence[Any]:
        """All objects of a kind in the namespace."""
        found: Sequence[Any] = self.plane.call("GET", _KINDS[kind].path(namespace or self.namespace))["items"] or []
        return found

    def condition(self, kind: str, name: str, what: str = "Ready") -> Any:
        """One condition."""
        conditions = (self.get(kind, name).get("status") or {}).get("conditions") or ()
        return next((c for c in conditions if c["type"] == what), {})

    def run_pods(self) -> bool:
        """Make and end pods as a Deployment controller and a kubelet would, all ready; whether any changed."""
        changed = False
        for workload in self.all("Deployment"):
            count, name = workload["spec"]["replicas"], name_of(workload)
            pods = self.pods(name)
            taken = {name_of(pod) for pod in pods}
            names = (f"{name}-{workload['metadata']['generation']}-{index}" for index in itertools.count())
            free = (name for name in names if name not in taken)
            for fresh in itertools.islice(free, max(0, count - len(pods))):
                self._start(WORKLOAD, workload, fresh)
            surplus = sorted(pods, key=_cost)[: max(0, len(pods) - count)]
            for pod in surplus:
                self.plane.call("DELETE", f"{POD.path(self.namespace, name_of(pod))}?gracePeriodSeconds=0")
            changed = self._report(workload) or changed or bool(surplus) or len(pods) < count
        ended = self._end_orphans()
        return self._run_jobs() or ended or changed

    def _end_orphans(self) -> bool:
        """End pods of workloads that are gone, as the garbage collector would."""
        alive = {obj["metadata"]["uid"] for kind in ("Deployment", "Job") for obj in self.all(kind)}
        gone = [p for p in self.all("Pod") if p["metadata"]["ownerReferences"][0]["uid"] not in alive]
        for pod in gone:
            self.plane.call("DELETE", f"{POD.path(self.namespace, name_of(pod))}?gracePeriodSeconds=0")
        return bool(gone)

    def _run_jobs(self) -> bool:
        """Run Jobs as their controller would: a pod each, which fails for as long as `job_trouble` says why."""
        changed = False
        for job in self.all("Job"):
            if condition_of(job, "Complete"):
                continue
            name = f"{name_of(job)}-x"
            if not any(name_of(pod) == name for pod in self.all("Pod")):
                self._start(JOB, job, name, ready=False)
                changed = True
            if self.job_trouble:
                changed = self._fail(name) or changed
                continue
            ends = [{"type": t, "status": "True", "lastTransitionTime": self.now} for t in _JOB_ENDS]
            status = {"startTime": self.now, "completionTime": self.now, "succeeded": 1, "conditions": ends}
            path = JOB.path(self.namespace, name_of(job), "status")
            self.plane.call("PATCH", path, {"status": status}, kind="application/merge-patch+json")
            changed = True
        return changed

    def _fail(self, pod: str) -> bool:
        if (self.plane.call("GET", POD.path(self.namespace, pod)).get("status") or {}).get("containerStatuses"):
            return False
        state = {
            "lastState": {"terminated": {"exitCode": 1, "message": self.job_trouble}},
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        }
        container = {"name": "purge", "image": "s", "imageID": "", "ready": False, "restartCount": 1, **state}
        body = {"status": {"containerStatuses": [container]}}
        path = POD.path(self.namespace, pod, "status")
        self.plane.call("PATCH", path, body, kind="application/strategic-merge-patch+json")
        return True

    def pods(self, workload: str) -> list[Any]:
        """Pods of one workload."""
        return [p for p in self.all("Pod") if labels_of(p).get("katsura.dev/workload") == workload]

    def set_ready(self, pod: str, ready: bool) -> None:
        """What a kubelet's probe would find."""
        scheduled = {"type": "PodScheduled", "status": "True"}
        ready_or_not = {"type": "Ready", "status": "True" if ready else "False"}
        self._say(pod, {"phase": "Running", "podIP": "10.0.0.7", "conditions": [scheduled, ready_or_not]})

    def leave_unscheduled(self, pod: str, why: str) -> None:
        """What a scheduler says that has no node for it."""
        lost = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
        self._say(pod, {"phase": "Pending", "conditions": [lost, {"type": "Ready", "status": "False"}]})

    def _say(self, pod: str, status: Mapping[str, Any]) -> None:
        path = POD.path(self.namespace, pod, "status")
        self.plane.call("PATCH", path, {"status": status}, kind="application/strategic-merge-patch+json")

    def _start(self, kind: Kind, workload: Any, name: str, *, ready: bool = True) -> None:
        template = workload["spec"]["template"]
        owned = {"apiVersion": kind.api_version, "kind": kind.name, "controller": True}
        owned |= {key: workload["metadata"][key] for key in ("name", "uid")}
        metadata = {**template["metadata"], "name": name, "ownerReferences": [owned]}
        self.plane.call("POST", POD.path(self.namespace), {"metadata": metadata, "spec": template["spec"]})
        self.set_ready(name, ready)

    def _report(self, workload: Any) -> bool:
        pods = self.pods(name_of(workload))
        ready = sum(is_ready(p) for p in pods)
        status = {
            "observedGeneration": workload["metadata"]["generation"],
            "replicas": len(pods),
            "updatedReplicas": len(pods),
            "readyReplicas": ready,
        }
        seen = workload.get("status", {})
        if all(seen.get(key, 0) == value for key, value in status.items()):
            return False
        path = WORKLOAD.path(self.namespace, name_of(workload), "status")
        self.plane.call("PATCH", path, {"status": status}, kind="application/merge-patch+json")
        return True


def is_ready(pod: Any) -> bool:
    """Whether its kubelet found it ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _cost(pod: Any) -> tuple[bool, int]:
    annotations = pod["metadata"].get("annotations", {})
    return is_ready(pod), int(annotations.get("controller.kubernetes.io/pod-deletion-cost", 0))


_PASSING: Final = {
    *("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation", "observedGeneration"),
    *("inputsHash", "data", "eventTime", "lastTransitionTime", "clusterIP", "clusterIPs"),
    *("katsura.dev/applied", "katsura.dev/draining"),
}
"""What differs between two runs that end in the same state."""


def digest_of(world: World) -> dict[str, Any]:
    """The state of a namespace without what is new in every run, by kind and name. Events are history, not state."""
    kinds = ["ModelDeployment", "MemoryStore", "RolePool", "PlacementPlan", "Deployment", "Service", "Secret"]
    kinds += ["PodDisruptionBudget", "NetworkPolicy", "Job"]
    found = [(kind, obj) for kind in kinds for obj in world.all(kind)]
    return {f"{kind}/{name_of(obj)}": _lasting(obj, world.namespace) for kind, obj in found}


def _lasting(value: Any, namespace: str) -> Any:
    if isinstance(value, Mapping):
        # An empty list is as good as none: whether it was ever longer is history.
        return {k: _lasting(v, namespace) for k, v in value.items() if k not in _PASSING and v not in ([], {})}
    if isinstance(value, list):
        return [_lasting(v, namespace) for v in value]
    return value.replace(namespace, "NAMESPACE") if isinstance(value, str) else value
