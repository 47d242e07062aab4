"""What a cluster says about its nodes: core/v1 Nodes and Pods and DRA ResourceSlices, as `kubectl get -o yaml` prints
them (`read_cluster`) or as the API server gives them (`observe`).

Only the fields that a plan needs are read, and foreign fields are passed over; resources of our group go on to
`bundle`. `problem` turns the result into classes of nodes. What other people's pods ask for is not free for us.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from katsura.domain.units import GIB
from katsura.manifests.bundle import Bundle, read_documents
from katsura.manifests.document import Entries, Items, Leaf, Node, parse, tree
from katsura.manifests.foreign import Foreign, plain
from katsura.manifests.rules import ManifestError, Problem, parse_quantity

_SPOT = {
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
}
_DOMAINS = ("katsura.dev/domain", "nvidia.com/gpu.clique", "topology.kubernetes.io/zone")
_CPU = re.compile(r"(?P<count>\d+(\.\d+)?)(?P<milli>m?)")
_OURS_TO_TOLERATE = ("nvidia.com/gpu", "amd.com/gpu", "habana.ai/gaudi", "katsura.dev/")
ROLE_LABEL: Final = "katsura.dev/role"
"""A pod that carries it stands where a plan put it: what it asks for counts as free."""


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node that pods of ours may be put on. `products` are the `productName`s of its DRA devices, one per device."""

    name: str
    labels: Mapping[str, str]
    cores: float
    memory_bytes: int
    resources: Mapping[str, int]
    products: tuple[str, ...] = ()

    @property
    def spot(self) -> bool:
        """Whether it may be taken away at any time."""
        return any(pair in _SPOT for pair in self.labels.items())

    @property
    def domain(self) -> str:
        """Its failure and network domain."""
        return next((self.labels[key] for key in _DOMAINS if key in self.labels), "default")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Resources of ours, nodes, and the nodes left out with why. `documents` are ours as they are written in files."""

    bundle: Bundle
    nodes: tuple[ClusterNode, ...]
    left_out: tuple[str, ...]
    documents: tuple[Node, ...] = ()

    def where(self, kind: str, name: str, path: str) -> str:
        """`FILE:LINE: PATH: ` of a field of a resource, for messages; empty where it was read from no file."""
        for document in self.documents:
            seen = Foreign("", plain(document), [], document)
            if seen.title == f"{kind} {name}":
                at = seen.place(tuple(path.split(".")))
                return f"{at.file}:{at.line}: {path}: "
        return ""


def read_cluster(files: Iterable[tuple[str, str]]) -> Cluster:
    """Read `(file name, YAML or JSON text)` pairs of our resources, Nodes, Pods, ResourceSlices and Lists of them.

    Raises:
        ManifestError: with every problem of every file.
    """
    problems: list[Problem] = []
    ours: list[Node] = []
    nodes: list[Foreign] = []
    slices: list[Foreign] = []
    pods: list[Foreign] = []

    def foreign(file: str, entry: Node | Mapping[str, Any]) -> Foreign:
        if isinstance(entry, Mapping):
            return Foreign(file, entry, problems)
        return Foreign(file, plain(entry), problems, entry)

    for file, text in files:
        for entry in _documents(file, text, problems):
            head = entry if isinstance(entry, Mapping) else _head(entry)
            match head.get("apiVersion"), head.get("kind"):
                case "v1", "Node":
                    nodes.append(foreign(file, entry))
                case "v1", "Pod":
                    pods.append(foreign(file, entry))
                case str(version), "ResourceSlice" if version.startswith("resource.k8s.io/"):
                    slices.append(foreign(file, entry))
                case _ if isinstance(entry, Mapping):
                    ours.append(tree(file, entry))
                case _:
                    ours.append(entry)
    bundle = read_documents(ours, problems)
    read, left_out = _nodes(nodes, slices, pods)
    if problems:
        raise ManifestError(problems)
    return Cluster(bundle, read, left_out, tuple(ours))


def observe(
    bundle: Bundle,
    nodes: Iterable[Mapping[str, Any]],
    slices: Iterable[Mapping[str, Any]] = (),
    pods: Iterable[Mapping[str, Any]] = (),
) -> Cluster:
    """The cluster of `bundle` and of Nodes, ResourceSlices and Pods as parsed JSON of the API server.

    A node that says too little (one that has just joined, say) is left out with why; it never stops a plan.
    """
    problems: list[Problem] = []

    def foreign(objects: Iterable[Mapping[str, Any]], kind: str) -> list[Foreign]:
        return [Foreign("cluster", {"kind": kind, **data}, problems) for data in objects]

    read, left_out = _nodes(foreign(nodes, "Node"), foreign(slices, "ResourceSlice"), foreign(pods, "Pod"))
    return Cluster(bundle, read, (*left_out, *(f"{p.field}: {p.message}" for p in problems)))


def _nodes(
    nodes: Sequence[Foreign], slices: Sequence[Foreign], pods: Sequence[Foreign]
) -> tuple[tuple[ClusterNode, ...], tuple[str, ...]]:
    products, taken = _products(slices), _taken(pods)
    left_out: list[str] = []
    read: dict[str, ClusterNode] = {}
    for seen in nodes:
        node = _node(seen, products, left_out)
        if node is not None and node.name in read:
            seen.wrong(("metadata", "name"), f"Node {node.name!r} is there twice; name every node once")
        elif node is not None:
            read[node.name] = node
    free = [_without(n, taken.get(n.name, {})) for n in read.values()]
    left_out += (f"{n.name}: others have taken its cores or its memory" for n in free if _is_full(n))
    return tuple(n for n in free if not _is_full(n)), tuple(left_out)


def _documents(file: str, text: str, problems: list[Problem]) -> Iterator[Node | Mapping[str, Any]]:
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except ValueError as error:
            problems.append(Problem(file, 1, 1, "", f"not JSON: {error}"))
            return
        yield from _unlisted(data)
        return
    for node in parse(file, text, problems):
        head = _head(node)
        items = node.nodes.get("items") if isinstance(node, Entries) else None
        if str(head.get("kind", "")).endswith("List") and isinstance(items, Items):
            yield from items.nodes
        else:
            yield node


def _unlisted(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, Mapping):
        if str(data.get("kind", "")).endswith("List"):
            for item in data.get("items", ()):
                yield from _unlisted(item)
        else:
            yield data


def _head(node: Node) -> dict[str, Any]:
    if not isinstance(node, Entries):
        return {}
    return {k: v.value for k, v in node.nodes.items() if k in ("apiVersion", "kind") and isinstance(v, Leaf)}


def _products(slices: Iterable[Foreign]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in slices:
        name = entry.mapping("spec").get("nodeName")
        for i in range(entry.count("spec", "devices")):
            device = ("spec", "devices", i)
            where = (*device, "basic") if entry.mapping(*device).get("basic") else device
            attributes = entry.mapping(*where, "attributes")
            key = "productName" if attributes.get("productName") else "gpu.nvidia.com/productName"
            value = entry.mapping(*where, "attributes", key).get("string")
            if name and value:
                found.setdefault(str(name), []).append(str(value))
    return found


def _node(seen: Foreign, products: Mapping[str, list[str]], left_out: list[str]) -> ClusterNode | None:
    before = len(seen.problems)
    name = str(seen.mapping("metadata").get("name") or "")
    source = "allocatable" if seen.mapping("status").get("allocatable") else "capacity"
    allocatable = seen.mapping("status", source)
    labels = {str(k): str(v) for k, v in seen.mapping("metadata", "labels").items()}
    why = _closed(seen)
    if len(seen.problems) > before:
        return None
    if not name or not allocatable:
        seen.wrong(("status",), "a Node needs metadata.name and status.allocatable")
        return None
    if why:
        left_out.append(f"{name}: {why}")
        return None
    cores, memory = _cores(allocatable.get("cpu")), parse_quantity(str(allocatable.get("memory", "")))
    for key, value, wanted in (("cpu", cores, "cores such as 8 or 7910m"), ("memory", memory, "bytes such as 64Gi")):
        if value is None:
            seen.wrong(("status", source, key), f"expected {wanted}, got {allocatable.get(key)!r}")
    resources = {k: parse_quantity(str(v)) for k, v in allocatable.items() if "/" in k}
    for key, count in resources.items():
        if count is None:
            seen.wrong(("status", source, key), f"expected a whole number, got {allocatable[key]!r}")
    if cores is None or memory is None or len(seen.problems) > before:
        return None
    counted = {k: v for k, v in resources.items() if v is not None}
    return ClusterNode(name, labels, cores, memory, counted, tuple(products.get(name, ())))


def _taken(pods: Iterable[Foreign]) -> dict[str, dict[str, float]]:
    """What running pods that are not ours ask of each node: cores, bytes and accelerators by resource name."""
    taken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for pod in pods:
        phase = pod.mapping("status").get("phase")
        if ROLE_LABEL in pod.mapping("metadata", "labels") or phase in ("Succeeded", "Failed"):
            continue
        asked: dict[str, float] = defaultdict(float)
        for i in range(pod.count("spec", "containers")):
            for name, value in _requests(pod, "spec", "containers", i).items():
                asked[name] += value
        for i in range(pod.count("spec", "initContainers")):
            sidecar = pod.mapping("spec", "initContainers", i).get("restartPolicy") == "Always"
            for name, value in _requests(pod, "spec", "initContainers", i).items():
                asked[name] = asked[name] + value if sidecar else max(asked[name], value)
        for name, value in asked.items():
            taken[str(pod.mapping("spec").get("nodeName") or "")][name] += value
    return taken


def _requests(pod: Foreign, *container: str | int) -> dict[str, float]:
    pod.mapping(*container)
    asked = {**pod.mapping(*container, "resources", "limits"), **pod.mapping(*container, "resources", "requests")}
    return {name: _amount(name, value) for name, value in asked.items()}


def _amount(name: str, value: object) -> float:
    return (_cores(value) if name == "cpu" else parse_quantity(str(value))) or 0.0


def _without(node: ClusterNode, taken: Mapping[str, float]) -> ClusterNode:
    """What is left of `node`, in whole cores and GiB, so that nodes that differ by a little stay one class."""
    if not taken:
        return node
    return replace(
        node,
        cores=float(max(0, math.floor(node.cores - taken.get("cpu", 0.0)))),
        memory_bytes=max(0, int(node.memory_bytes - taken.get("memory", 0.0))) // GIB * GIB,
        resources={name: max(0, count - int(taken.get(name, 0))) for name, count in node.resources.items()},
    )


def _is_full(node: ClusterNode) -> bool:
    return node.cores <= 0 or node.memory_bytes <= 0


def _closed(seen: Foreign) -> str:
    """Why no pod of ours may stand there; empty where it may."""
    if seen.mapping("spec").get("unschedulable"):
        return "cordoned"
    for i in range(seen.count("spec", "taints")):
        taint = seen.mapping("spec", "taints", i)
        key = str(taint.get("key", ""))
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not key.startswith(_OURS_TO_TOLERATE):
            return f"taint {key}"
    said = [seen.mapping("status", "conditions", i) for i in range(seen.count("status", "conditions"))]
    ready = [c.get("status") for c in said if c.get("type") == "Ready"]
    return "not ready" if ready and ready[0] != "True" else ""


def _cores(value: object) -> float | None:
    """`4`, `3920m` -> cores; None for what is neither."""
    match = _CPU.fullmatch(str(value))
    return None if match is None else float(match["count"]) / (1000 if match["milli"] else 1)
