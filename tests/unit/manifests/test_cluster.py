from __future__ import annotations

import json

import pytest

from katsura.manifests.bundle import Bundle
from katsura.manifests.cluster import observe, read_cluster
from katsura.manifests.rules import ManifestError

NODE = """\
apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels: {{nvidia.com/gpu.product: NVIDIA-L4, topology.kubernetes.io/zone: z1, karpenter.sh/capacity-type: spot}}
spec: {spec}
status:
  allocatable: {{cpu: 7910m, memory: 29Gi, nvidia.com/gpu: "4", ephemeral-storage: 90Gi}}
  conditions: [{{type: Ready, status: "{ready}"}}]
"""


def node(name: str = "n1", spec: str = "{}", ready: str = "True") -> str:
    return NODE.format(name=name, spec=spec, ready=ready)


def test_a_node_is_read_with_what_pods_may_use_of_it() -> None:
    (read,) = read_cluster([("n.yaml", node())]).nodes
    assert (read.name, read.cores, read.memory_bytes) == ("n1", 7.91, 29 * 2**30)
    assert read.resources == {"nvidia.com/gpu": 4}
    assert read.spot
    assert read.domain == "z1"


def test_lists_in_yaml_and_json_are_what_kubectl_prints() -> None:
    items = "\n".join("  " + line if i else "- " + line for i, line in enumerate(node().splitlines()))
    assert len(read_cluster([("l.yaml", f"apiVersion: v1\nkind: List\nitems:\n{items}")]).nodes) == 1
    one = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "j"},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}},
    }
    agent = {"apiVersion": "katsura.dev/v1alpha1", "kind": "MemoryStore", "metadata": {"name": "m"}, "spec": {}}
    read = read_cluster([("l.json", json.dumps({"kind": "List", "items": [one, agent]}))])
    assert read.nodes[0].cores == 4
    assert read.bundle.memory_stores[0].metadata.name == "m"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (node(spec="{unschedulable: true}"), "n1: cordoned"),
        (node(ready="False"), "n1: not ready"),
        (node(spec="{taints: [{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}]}"), "n1: taint"),
    ],
)
def test_a_node_that_pods_may_not_use_is_left_out_with_why(text: str, why: str) -> None:
    read = read_cluster([("n.yaml", text)])
    assert read.nodes == ()
    assert read.left_out[0].startswith(why)


def test_a_taint_for_accelerators_is_tolerated() -> None:
    assert read_cluster([("n.yaml", node(spec="{taints: [{key: nvidia.com/gpu, effect: NoSchedule}]}"))]).nodes


def test_dra_devices_are_read_from_resource_slices() -> None:
    device = {"name": "gpu-0", "attributes": {"productName": {"string": "NVIDIA H200"}}}
    entry = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "spec": {"nodeName": "n1", "devices": [device]},
    }
    (read,) = read_cluster([("s.json", json.dumps(entry)), ("n.yaml", node())]).nodes
    assert read.products == ("NVIDIA H200",)


@pytest.mark.parametrize("text", ["{", "apiVersion: v1\nkind: Node", node().replace("7910m", "lots"), "a: [1"])
def test_what_cannot_be_read_names_its_file(text: str) -> None:
    with pytest.raises(ManifestError, match=r"x\.(yaml|json):"):
        read_cluster([("x.yaml", text)])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cpu: 7910m", "cpu: .nan", r"n.yaml:8: Node n1: status.allocatable.cpu: expected cores such as .* got nan"),
        ("cpu: 7910m", "cpu: '-4'", r"status.allocatable.cpu: .*'-4'"),
        ("memory: 29Gi", "memory: plenty", r"status.allocatable.memory: .*'plenty'"),
        ('nvidia.com/gpu: "4"', "nvidia.com/gpu: lots", r"n.yaml:8: .*nvidia.com/gpu: expected a whole number"),
        ("spec: {}", "spec: {taints: [x]}", r"n.yaml:6: Node n1: spec.taints\[0\]: expected fields, got 'x'"),
        ("conditions: [", "conditions: 3 # [", r"status.conditions: expected a list, got 3"),
        ("allocatable: {", "nothing: {", r"a Node needs metadata.name and status.allocatable"),
    ],
)
def test_a_node_with_a_wrong_field_is_refused_with_its_line(old: str, new: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        read_cluster([("n.yaml", node().replace(old, new))])


def test_a_node_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"n.yaml:\d+: Node n1: metadata.name: Node 'n1' is there twice"):
        read_cluster([("n.yaml", node() + "---\n" + node())])


def test_a_cluster_that_is_observed_leaves_out_what_is_wrong_and_goes_on() -> None:
    good = {"metadata": {"name": "good"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}}
    bad = {"metadata": {"name": "bad"}, "status": {"allocatable": {"cpu": "many", "memory": "8Gi"}}}
    pod = {"metadata": {"name": "p"}, "spec": {"containers": "none", "nodeName": "good"}}
    seen = observe(Bundle((), (), ()), [good, bad], pods=[pod])
    assert [n.name for n in seen.nodes] == ["good"]
    assert any("Node bad: status.allocatable.cpu" in why for why in seen.left_out)
    assert any("Pod p: spec.containers" in why for why in seen.left_out)


def test_a_field_of_a_resource_is_found_in_its_file() -> None:
    text = "apiVersion: katsura.dev/v1alpha1\nkind: MemoryStore\nmetadata: {name: m}\nspec:\n  replicas: 2\n"
    read = read_cluster([("m.yaml", text)])
    assert read.where("MemoryStore", "m", "spec.replicas") == "m.yaml:5: spec.replicas: "
    assert read.where("MemoryStore", "m", "spec.hints.bytes").startswith("m.yaml:5: ")
    assert read.where("MemoryStore", "other", "spec") == ""
