"""What a cluster says about its nodes: core/v1 Nodes and DRA ResourceSlices, as `kubectl get -o yaml` prints them.

Only the fields that a plan needs are read, and foreign fields are passed over; resources of our group go on to
`bundle`. `problem` turns the result into classes of nodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
    """Read `(file name, YAML or JSON text)` pairs of our resources, Nodes, ResourceSlices and Lists of them.

    Raises:
        ManifestError: with every problem of every file.
    """
    problems: list[Problem] = []
    ours: list[Node] = []
    nodes: list[tuple[str, Mapping[str, Any]]] = []
    slices: list[Mapping[str, Any]] = []
    for file, text in files:
        for entry in _documents(file, text, problems):
            plain = entry if isinstance(entry, Mapping) else _head(entry)
            match plain.get("apiVersion"), plain.get("kind"):
                case "v1", "Node":
                    nodes.append((file, _plain(entry)))
                case str(version), "ResourceSlice" if version.startswith("resource.k8s.io/"):
                    slices.append(_plain(entry))
                case _ if isinstance(entry, Mapping):
                    # JSON of our kinds: through YAML, so that it is checked by the same reader.
                    ours += parse(file, json.dumps(entry), problems)
                case _:
                    ours.append(entry)
    bundle = read_documents(ours, problems)
    products = _products(slices)
    left_out: list[str] = []
    read = [_node(file, node, products, problems, left_out) for file, node in nodes]
    if problems:
        raise ManifestError(problems)
    return Cluster(bundle, tuple(n for n in read if n is not None), tuple(left_out))


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
