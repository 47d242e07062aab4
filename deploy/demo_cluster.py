"""`make demo-cluster`: the README's three commands on a real Kubernetes with two nodes, and then the trouble.

    images, cluster, load, install, test, ask, kill an expert pod in the middle of an answer, drain a node,
    stop a kubelet, upgrade, uninstall

Each stage says what it does and how long it took; any that fails ends the run with status 1. The cluster is started by
the tool named by --cluster (nodes as network namespaces: root, containerd), and is gone when this ends.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import images

PROJECT = images.PROJECT
CHART = PROJECT / "charts" / "katsura"
NAMESPACE = "katsura"
MODEL = "smollm2-135m-instruct"
TOOLS = ("containerd", "runc", "iptables", "conntrack", "ethtool", "openssl", "ip")
SETTINGS = ("image.registry=localhost/", "image.pullPolicy=Never", "operator.inventory=nodes", "operator.overcommit=4")
"""Plans for the nodes that there are: both are this machine, so their cores are counted four times."""
READY_S = 240
QUESTION = "Tell me about Paris."
ANSWER_TOKENS = 64
LOST_AT = 20
"""Pieces of the answer that were read when the pod is killed."""


@dataclass
class Demo:
    """One run: the tools, the cluster's folder and how long each stage took."""

    cluster: Path
    helm: str
    folder: Path
    times: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say what begins, and how long it took."""
        print(f"==> {name}", flush=True)
        start_s = time.monotonic()
        yield
        self.times.append((name, time.monotonic() - start_s))
        print(f"    {self.times[-1][1]:.1f} s", flush=True)

    def run(self, *line: str | Path, check: bool = True, show: bool = False) -> str:
        """A command with this cluster's KUBECONFIG; its output."""
        env = {**os.environ, "KUBECONFIG": str(self.folder / "kubeconfig")}
        done = subprocess.run([str(part) for part in line], env=env, capture_output=True, text=True, check=False)  # noqa: S603
        if show:
            print("\n".join(f"    {text}" for text in done.stdout.splitlines()), flush=True)
        if check and done.returncode:
            raise SystemExit(f"{' '.join(map(str, line))}:\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout

    def kubectl(self, *line: str, check: bool = True, show: bool = False) -> str:
        """kubectl in the demo's namespace."""
        return self.run(self.cluster.parent / "bin" / "kubectl", "-n", NAMESPACE, *line, check=check, show=show)

    def get(self, *line: str) -> list[dict[str, Any]]:
        """Resources as data."""
        return list(json.loads(self.kubectl("get", *line, "-o", "json"))["items"])

    def pods(self, role: str) -> dict[str, str]:
        """Ready pods of a role that nobody deletes: name to node."""
        found = self.get("pods", "-l", f"katsura.dev/role={role}", "--field-selector=status.phase=Running")
        alive = [pod for pod in found if not pod["metadata"].get("deletionTimestamp") and "Ready" in _times(pod)]
        return {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in alive}

    def until(self, what: str, holds: Callable[[], bool], limit_s: float = READY_S) -> None:
        """Wait until `holds`, telling the state of our resources when it never does."""
        start_s = time.monotonic()
        while not holds():
            if time.monotonic() - start_s > limit_s:
                self.kubectl("get", "katsura,pods", "-o", "wide", show=True)
                raise SystemExit(f"{what}: not within {limit_s:.0f} s")
            time.sleep(1.0)

    def ready(self) -> bool:
        """Whether the model is Ready for what is asked now, on pods that live."""
        (model,) = self.get("modeldeployments")
        conditions = {c["type"]: c for c in (model.get("status") or {}).get("conditions") or ()}
        said = conditions.get("Ready", {})
        current = said.get("observedGeneration") == model["metadata"]["generation"]
        return bool(current and said.get("status") == "True")

    def planned_on(self) -> tuple[str, set[str]]:
        """The newest plan, and the nodes that the plan which the model names gives it: an older one that says the same
        of it keeps its name there."""
        (model,) = self.get("modeldeployments")
        name = model.get("status", {}).get("plan", {}).get("name", "")
        plans = {plan["metadata"]["name"]: plan for plan in self.get("placementplans")}
        found = [plan["status"] for plan in plans.values() if plan["metadata"]["name"] == name]
        entries = [e for status in found for e in status["assignments"]]
        mine = [e for e in entries if e["service"].endswith(f"/{model['metadata']['name']}")]
        return max(plans, default=""), {
            place["node"] for e in mine for instance in e["instances"] for place in instance["places"]
        }

    @contextmanager
    def gateway(self) -> Iterator[str]:
        """URL of the gateway's Service through a port-forward, as the README has it."""
        self.kubectl("rollout", "status", "deploy/katsura-gateway", "--timeout=120s")
        env = {**os.environ, "KUBECONFIG": str(self.folder / "kubeconfig")}
        line = [
            str(self.cluster.parent / "bin" / "kubectl"),
            "-n",
            NAMESPACE,
            "port-forward",
            "svc/katsura-gateway",
            ":80",
        ]
        with subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as forward:  # noqa: S603
            try:
                assert forward.stdout is not None
                yield "http://127.0.0.1:" + forward.stdout.readline().split(":")[1].split(" ")[0]
            finally:
                forward.kill()

    def key(self) -> str:
        """An API key of the namespace's tenant."""
        command = [sys.executable, "-m", "katsura.cli.main", "key", "create", "--cluster", NAMESPACE]
        env = {**os.environ, "KUBECONFIG": str(self.folder / "kubeconfig")}
        command += ["--of-namespace", NAMESPACE]
        made = subprocess.run(command, env=env, capture_output=True, text=True, check=True)  # noqa: S603
        return made.stdout.split()[0]

    def answer(self, url: str, key: str, on_piece: Callable[[int], None] = lambda count: None) -> str:
        """Stream an answer; greedy, so that it is the same every time. `on_piece` hears how many pieces came."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
        }
        text, count, finish = "", 0, ""
        headers = {"authorization": f"Bearer {key}"}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=300) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise SystemExit(f"the stream ended: {event['error']['message']}")
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    finish = choice.get("finish_reason") or finish
                    count += 1
                on_piece(count)
        if reply.status_code != 200 or not finish:
            raise SystemExit(f"no whole answer: status {reply.status_code}, finish {finish!r}, {count} pieces")
        return text


def play(demo: Demo, archives: list[Path]) -> None:
    """Everything from an empty cluster to an empty cluster."""
    with demo.stage("start Kubernetes: two nodes that run containers"):
        demo.run(demo.cluster, "up", "--dir", demo.folder, "--nodes", "2", show=True)
    with demo.stage(f"load {len(archives)} images into both nodes"):
        demo.run(demo.cluster, "load", "--dir", demo.folder, *archives)
    with demo.stage("helm install"):
        demo.kubectl("create", "namespace", NAMESPACE)
        demo.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        helm(demo, "install", "--wait", "--timeout", "5m")
    with demo.stage("apply to Ready"):
        demo.until("Ready", demo.ready)
        demo.kubectl("get", "katsura", show=True)
        tell_stages(demo)
    with demo.stage("helm test: a streamed chat, a forked session, an applied resource"):
        demo.run(demo.helm, "test", "katsura", "-n", NAMESPACE, "--logs", show=True)
    key = demo.key()
    with demo.stage("curl"), demo.gateway() as url:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        said = {"model": MODEL, "stream": True, "temperature": 0, "messages": question}
        head = ["-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json"]
        shown = demo.run("curl", "-sN", f"{url}/v1/chat/completions", *head, "-d", json.dumps(said))
        pieces = [json.loads(line[6:]) for line in shown.splitlines() if line.startswith("data: {")]
        print("    " + "".join(c["delta"].get("content") or "" for piece in pieces for c in piece["choices"]))
        print(f"    from pods on {sorted({*demo.pods('attention').values(), *demo.pods('experts').values()})}")
    trouble(demo, key)
    with demo.stage("helm upgrade: two gateways"):
        before = demo.kubectl("get", "secret", "katsura", "-o", "jsonpath={.data}")
        helm(demo, "upgrade", "--wait", "--timeout", "5m", "--set", "gateway.replicas=2")
        if demo.kubectl("get", "secret", "katsura", "-o", "jsonpath={.data}") != before:
            raise SystemExit("the upgrade changed the passwords")
        demo.until("Ready after the upgrade", demo.ready)
    with demo.stage("helm uninstall"):
        demo.run(demo.helm, "uninstall", "katsura", "-n", NAMESPACE, "--wait", "--timeout", "5m", show=True)
        demo.until(
            "nothing but what was announced",
            lambda: left_over(demo) == ["persistentvolumeclaim/data-katsura-valkey-0"],
            90,
        )


def helm(demo: Demo, command: str, *more: str) -> None:
    """`helm install` or `helm upgrade` of the chart as the demo wants it."""
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    demo.run(demo.helm, command, "katsura", CHART, "-n", NAMESPACE, *sets, *more)


def trouble(demo: Demo, key: str) -> None:
    """What happens to a cluster, while answers must go on."""
    with demo.gateway() as url:
        calm = demo.answer(url, key)
        with demo.stage("kill an expert pod in the middle of an answer"):
            victim, node = next(iter(demo.pods("experts").items()))

            def kill(count: int) -> None:
                if count == LOST_AT:
                    demo.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
                    print(f"    {victim} on {node} killed after {count} pieces", flush=True)

            if demo.answer(url, key, kill) != calm:
                raise SystemExit("the answer is not the one that an undisturbed pool gave")
            print(f"    the stream went on; all {len(calm)} characters as without the kill")
    with demo.stage("the pool heals"):
        demo.until("two experts again", lambda: len(demo.pods("experts")) == 2 and demo.ready())
    keeper = next(iter(demo.pods("valkey").values()))
    other = "node1" if keeper == "node2" else "node2"
    with demo.stage(f"kubectl drain {other} (the volume of Valkey is on {keeper})"):
        demo.kubectl("drain", other, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
        demo.until("Ready on one node", lambda: demo.ready() and [*demo.pods("experts").values()] == [keeper, keeper])
        with demo.gateway() as url:
            if demo.answer(url, key) != calm:
                raise SystemExit("the answer changed with the placement")
        demo.kubectl("uncordon", other)
    with demo.stage(f"an expert moves back to {other}"):
        demo.kubectl("delete", "pod", next(iter(demo.pods("experts"))))
        demo.until(
            "experts on both nodes", lambda: set(demo.pods("experts").values()) == {keeper, other} and demo.ready()
        )
    with demo.stage(f"stop the kubelet of {other}: its pods move within a minute"):
        before, _ = demo.planned_on()
        start_s = time.monotonic()
        demo.run(demo.cluster, "kubelet", "--dir", demo.folder, other, "stop")

        def moved() -> bool:
            name, nodes = demo.planned_on()
            return name > before and nodes == {keeper}

        demo.until("a plan without that node", moved)
        print(f"    {demo.planned_on()[0]} uses {keeper} alone, {time.monotonic() - start_s:.0f} s later", flush=True)
        demo.until(
            "Ready without that node", lambda: [*demo.pods("experts").values()] == [keeper, keeper] and demo.ready()
        )
    with demo.gateway() as url:
        if demo.answer(url, key) != calm:
            raise SystemExit("the answer changed with the node")
    demo.run(demo.cluster, "kubelet", "--dir", demo.folder, other, "start")


def tell_stages(demo: Demo) -> None:
    """When each pod came through each stage, in seconds after the first resource was made; `loaded` and `probed` are
    a shard's own words."""
    (model,) = demo.get("modeldeployments")
    start_s = _seconds(model["metadata"]["creationTimestamp"])
    for pod in sorted(demo.get("pods", "-l", "katsura.dev/pool"), key=lambda p: p["metadata"]["name"]):
        name = pod["metadata"]["name"]
        running = [(c.get("state") or {}).get("running") or {} for c in pod["status"].get("containerStatuses") or ()]
        told = _told(demo.kubectl("logs", name)) if pod["metadata"]["labels"]["katsura.dev/role"] == "attention" else {}
        conditions = _times(pod)
        at = {
            "planned": _seconds(pod["metadata"]["creationTimestamp"]),
            "scheduled": conditions.get("PodScheduled"),
            "started": next((_seconds(state["startedAt"]) for state in running if "startedAt" in state), None),
            "loaded": told.get("loaded"),
            "probed": told.get("probed"),
            "ready": conditions.get("Ready"),
        }
        stages = ", ".join(f"{stage} +{stamp - start_s:.1f}" for stage, stamp in at.items() if stamp is not None)
        print(f"    {name[:48]:48} {stages} s on {pod['spec'].get('nodeName')}")


def _told(logs: str) -> dict[str, float]:
    """When a process first said each thing that it said."""
    lines = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    return {line["message"]: _seconds(line["time"]) for line in reversed(lines)}


def _times(pod: dict[str, Any]) -> dict[str, float]:
    """When each condition of a pod that is true became true."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return {c["type"]: _seconds(c["lastTransitionTime"]) for c in conditions if c["status"] == "True"}


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def left_over(demo: Demo) -> list[str]:
    """What is still in the namespace, but for what every namespace has."""
    kinds = "all,secret,configmap,serviceaccount,role,rolebinding,networkpolicy,pdb,lease,pvc,katsura"
    names = demo.kubectl("get", kinds, "-o", "name", check=False).split()
    return [name for name in names if name not in ("configmap/kube-root-ca.crt", "serviceaccount/default")]


def find(said: str, name: str, *candidates: Path) -> Path:
    """A tool by option, else among `candidates`."""
    found = next((path for path in ([Path(said)] if said else candidates) if path.exists()), None)
    if found is None:
        raise SystemExit(f"{name} was not found; name it by --{name}. Without it: deploy/kind/cluster.yaml, for kind")
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cluster", default="", help="the tool that starts a cluster (default: beside KUBEBUILDER_ASSETS)"
    )
    parser.add_argument(
        "--helm", default="", help="helm 3 or 4 (default: the PATH's, else the one in KUBEBUILDER_ASSETS)"
    )
    parser.add_argument("--images", type=Path, default=PROJECT / ".bench" / "images", help="folder of image archives")
    parser.add_argument("--no-build", action="store_true", help="take the archives as they are")
    said = parser.parse_args()
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS") or PROJECT.parent / "shared" / "kube" / "bin")
    on_path = shutil.which("helm")
    cluster = find(said.cluster, "cluster", assets.parent / "cluster")
    helm_binary = find(said.helm, "helm", *([Path(on_path)] if on_path else []), assets / "helm3")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        raise SystemExit(
            f"{', '.join(missing)} missing: apt-get install containerd runc containernetworking-plugins iptables "
            "busybox-static conntrack ethtool openssl iproute2 buildah debootstrap"
        )
    demo = Demo(cluster, str(helm_binary), Path(tempfile.mkdtemp(prefix="katsura-cluster-")) / "c")
    try:
        archives = [said.images / f"{target}.tar" for target in images.DEMO]
        if not said.no_build:
            with demo.stage(f"build {', '.join(images.DEMO)} from deploy/docker/Dockerfile"):
                archives = images.build(images.DEMO, said.images)
        play(demo, archives)
    finally:
        with demo.stage("stop the cluster"):
            subprocess.run([str(cluster), "down", "--dir", str(demo.folder)], check=False, capture_output=True)  # noqa: S603
            shutil.rmtree(demo.folder.parent, ignore_errors=True)
    print(f"\nall of it worked, in {sum(seconds for _, seconds in demo.times):.0f} s:")
    for name, seconds in demo.times:
        print(f"  {seconds:7.1f} s  {name}")


if __name__ == "__main__":
    sys.exit(main())
