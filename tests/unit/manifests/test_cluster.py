from __future__ import annotations

import json

import pytest

from katsura.manifests.cluster import read_cluster
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
