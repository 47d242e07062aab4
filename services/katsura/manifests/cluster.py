"""What a cluster says about its nodes: core/v1 Nodes and Pods and DRA ResourceSlices, as `kubectl get -o yaml` prints
them (`read_cluster`) or as the API server gives them (`observe`).

Only the fields that a plan needs are read, and foreign fields are passed over; resources of our group go on to
`bundle`. `problem` turns the result into classes of nodes. What other people's pods ask for is not free for us.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from katsura.domain.units import GIB
from katsura.manifests.bundle import Bundle, read_documents
from katsura.manifests.document import Entries, Items, Leaf, Node, parse
from katsura.manifests.rules import ManifestError, Problem, parse_quantity

_SPOT = {
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
}
_DOMAINS = ("katsura.dev/domain", "nvidia.com/gpu.clique", "topology.kubernetes.io/zone")
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
    """Resources of ours, nodes, and the nodes left out with why."""

    bundle: Bundle
    nodes: tuple[ClusterNode, ...]
    left_out: tuple[str, ...]


def read_cluster(files: Iterable[tuple[str, str]]) -> Cluster:
    """Read `(file name, YAML or JSON text)` pairs of our resources, Nodes, Pods, ResourceSlices and Lists of them.

    Raises:
        ManifestError: with every problem of every file.
    """
    problems: list[Problem] = []
    ours: list[Node] = []
    nodes: list[tuple[str, Mapping[str, Any]]] = []
    slices: list[Mapping[str, Any]] = []
    pods: list[Mapping[str, Any]] = []
    for file, text in files:
        for entry in _documents(file, text, problems):
            plain = entry if isinstance(entry, Mapping) else _head(entry)
            match plain.get("apiVersion"), plain.get("kind"):
                case "v1", "Node":
                    nodes.append((file, _plain(entry)))
                case "v1", "Pod":
                    pods.append(_plain(entry))
                case str(version), "ResourceSlice" if version.startswith("resource.k8s.io/"):
                    slices.append(_plain(entry))
                case _ if isinstance(entry, Mapping):
                    # JSON of our kinds: through YAML, so that it is checked by the same reader.
                    ours += parse(file, json.dumps(entry), problems)
                case _:
                    ours.append(entry)
    bundle = read_documents(ours, problems)
    read, left_out = _nodes(nodes, slices, pods, problems)
    if problems:
        raise ManifestError(problems)
    return Cluster(bundle, read, left_out)


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
    read, left_out = _nodes([("node", n) for n in nodes], slices, pods, problems)
    return Cluster(bundle, read, (*left_out, *(f"{p.field}: {p.message}" for p in problems)))


def _nodes(
    nodes: Iterable[tuple[str, Mapping[str, Any]]],
    slices: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    problems: list[Problem],
) -> tuple[tuple[ClusterNode, ...], tuple[str, ...]]:
    products, taken = _products(slices), _taken(pods)
    left_out: list[str] = []
    read = [_node(file, node, products, problems, left_out) for file, node in nodes]
    return tuple(_without(n, taken.get(n.name, {})) for n in read if n is not None), tuple(left_out)


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


def _plain(node: Any) -> Any:
    match node:
        case Entries():
            return {key: _plain(value) for key, value in node.nodes.items()}
        case Items():
            return [_plain(item) for item in node.nodes]
        case Leaf():
            return node.value
        case _:
            return node


def _products(slices: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in slices:
        spec = entry.get("spec") or {}
        for device in spec.get("devices") or ():
            attributes = (device.get("basic") or device).get("attributes") or {}
            value = attributes.get("productName") or attributes.get("gpu.nvidia.com/productName") or {}
            if spec.get("nodeName") and value.get("string"):
                found.setdefault(str(spec["nodeName"]), []).append(str(value["string"]))
    return found


def _node(
    file: str,
    node: Mapping[str, Any],
    products: Mapping[str, list[str]],
    problems: list[Problem],
    left_out: list[str],
) -> ClusterNode | None:
    metadata, spec, status = (node.get(key) or {} for key in ("metadata", "spec", "status"))
    name = str(metadata.get("name", ""))
    allocatable = status.get("allocatable") or status.get("capacity")
    if not name or not isinstance(allocatable, Mapping):
        problems.append(Problem(file, 1, 1, f"Node {name}", "needs metadata.name and status.allocatable"))
        return None
    why = _closed(spec, status)
    if why:
        left_out.append(f"{name}: {why}")
        return None
    cores, memory = _cores(allocatable.get("cpu")), parse_quantity(str(allocatable.get("memory", "")))
    if cores is None or memory is None:
        problems.append(Problem(file, 1, 1, f"Node {name}", "status.allocatable needs cpu and memory as quantities"))
        return None
    resources = {k: int(v) for k, v in allocatable.items() if "/" in k and str(v).isdigit()}
    labels = {str(k): str(v) for k, v in (metadata.get("labels") or {}).items()}
    return ClusterNode(name, labels, cores, memory, resources, tuple(products.get(name, ())))


def _taken(pods: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What running pods that are not ours ask of each node: cores, bytes and accelerators by resource name."""
    taken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for pod in pods:
        metadata, spec, status = (pod.get(key) or {} for key in ("metadata", "spec", "status"))
        if ROLE_LABEL in (metadata.get("labels") or {}) or status.get("phase") in ("Succeeded", "Failed"):
            continue
        asked: dict[str, float] = defaultdict(float)
        for container in spec.get("containers") or ():
            for name, value in _requests(container).items():
                asked[name] += value
        for container in spec.get("initContainers") or ():
            sidecar = container.get("restartPolicy") == "Always"
            for name, value in _requests(container).items():
                asked[name] = asked[name] + value if sidecar else max(asked[name], value)
        for name, value in asked.items():
            taken[str(spec.get("nodeName") or "")][name] += value
    return taken


def _requests(container: Mapping[str, Any]) -> dict[str, float]:
    said = container.get("resources") or {}
    asked = {**(said.get("limits") or {}), **(said.get("requests") or {})}
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


def _closed(spec: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    if spec.get("unschedulable"):
        return "cordoned"
    for taint in spec.get("taints") or ():
        key = str(taint.get("key", ""))
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not key.startswith(_OURS_TO_TOLERATE):
            return f"taint {key}"
    ready = [c.get("status") for c in status.get("conditions") or () if c.get("type") == "Ready"]
    return "not ready" if ready and ready[0] != "True" else ""


def _cores(value: object) -> float | None:
    """`4`, `3920m` -> cores."""
    text = str(value)
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return None
