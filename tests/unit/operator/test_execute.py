"""What a pass writes, in which order, and what one refusal does to the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from katsura.domain.errors import KatsuraError, ResourceExhaustedError, UnavailableError
from katsura.testing.apiserver import ApiServer, TwinKube
from katsura_operator.core.decision import outstanding
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import MANAGER, PLAN, POD, ROLE, SERVICE, WORKLOAD, make
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.execute import Executor, Outcome, controller_of

NOW = "2026-11-21T12:00:00Z"
OWNER = {"apiVersion": "katsura.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "chat", "uid": "o1"}}


class House:
    """A server, an executor, and who was told to drain."""

    def __init__(self) -> None:
        self.server = ApiServer()
        for uid in ("o1", "o2"):  # whose children the server would otherwise take back at once
            owner = {**OWNER, "metadata": {"name": uid, "namespace": "n", "uid": uid}}
            self.server.objects["modeldeployments", "n", uid] = owner
        self.asked: list[tuple[str, str, str]] = []
        self.told: list[tuple[str, str]] = []
        self.trouble: KatsuraError | None = None

    async def drain(self, role: str, address: str) -> None:
        self.told.append((role, address))
        if self.trouble is not None:
            raise self.trouble

    async def run(self, desired: Desired, fault: Callable[[str, str], int] = lambda method, path: 0) -> Outcome:
        def noted(method: str, path: str, query: Mapping[str, str]) -> int:
            self.asked.append((method, path, query.get("fieldManager", "")))
            return fault(method, path)

        self.server.fault = noted
        kinds: dict[str, list[Any]] = {}
        for obj in self.server.objects.values():
            kinds.setdefault(obj["kind"], []).append(obj)
        seen = Snapshot({k: tuple(v) for k, v in kinds.items()}, NOW)
        return await Executor(TwinKube(self.server), self, 9000).run(outstanding(desired, seen), seen)

    def children(self) -> list[str]:
        return [kind for kind, _, _ in self.server.objects if kind != "modeldeployments"]

    def put(self, body: Any) -> Any:
        path = f"{SERVICE.path('n')}" if body["kind"] == "Service" else f"{POD.path('n')}"
        return self.server.call("POST", path, body)


def service(name: str, port: int = 1, owner: Any = OWNER) -> dict[str, Any]:
    return make(SERVICE, "n", name, labels={}, owner_of=owner) | {"spec": {"ports": [{"port": port}]}}


def pod(name: str, **status: Any) -> dict[str, Any]:
    return make(POD, "n", name, labels={ROLE: "experts"}, owner_of=None) | {"status": status}


async def test_what_is_as_it_should_be_is_not_written_again() -> None:
    house = House()
    assert (await house.run(Desired(keep=[service("a")]))).writes == 1
    assert (await house.run(Desired(keep=[service("a")]))).writes == 0
    assert (await house.run(Desired(keep=[service("a", 2)]))).writes == 1


async def test_somebody_elses_object_of_that_name_is_refused_and_the_rest_is_made() -> None:
    house = House()
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 9}]}}
    house.put(theirs)
    desired = Desired(keep=[service("a"), service("b")])
    house.server.objects[("services", "n", "a")]["kind"] = "Service"
    kinds: dict[str, tuple[Any, ...]] = {"Service": ()}  # it does not carry our label, so no list of ours shows it
    outcome = await Executor(TwinKube(house.server), house, 9000).run(desired, Snapshot(kinds, NOW))
    assert [what for what, _ in outcome.refused] == ["Service/n/a"]
    assert "is not ours" in outcome.refused[0][1]
    assert house.server.call("GET", SERVICE.path("n", "a"))["spec"]["ports"] == [{"port": 9}]
    assert house.server.call("GET", SERVICE.path("n", "b"))


async def test_a_child_of_an_owner_that_was_made_anew_is_ended_and_made_by_the_next_pass() -> None:
    house = House()
    await house.run(Desired(keep=[service("a")]))
    reborn = {**OWNER, "metadata": {**OWNER["metadata"], "uid": "o2"}}  # type: ignore[dict-item]
    outcome = await house.run(Desired(keep=[service("a", owner=reborn)]))
    assert outcome.conflicts == 1
    assert house.children() == []
    await house.run(Desired(keep=[service("a", owner=reborn)]))
    assert controller_of(house.server.call("GET", SERVICE.path("n", "a"))) == "o2"


async def test_everything_happens_in_the_order_of_its_fields() -> None:
    house = House()
    first, second = house.put(pod("p1", podIP="10.0.0.1")), house.put(pod("p2", podIP="10.0.0.2"))
    old = house.put(service("old"))
    plan = make(PLAN, "n", "plan-000001", labels={}, owner_of=None) | {"spec": {"x": 1}, "status": {"gap": None}}
    event = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"}}
    status = {**{k: first[k] for k in ("apiVersion", "kind", "metadata")}, "status": {"phase": "Running"}}
    desired = Desired(
        plan=plan,
        seeds=[service("seed")],
        keep=[service("kept")],
        mark=[first],
        drain=[second],
        remove=[second],
        delete=[old],
        events=[event],
        statuses=[(first, status)],
    )
    house.asked.clear()
    outcome = await house.run(desired)
    wrote = [(m, p.rpartition("/n/")[2], by) for m, p, by in house.asked if m != "GET"]
    assert wrote == [
        ("PATCH", "placementplans/plan-000001", MANAGER),
        ("PATCH", "placementplans/plan-000001/status", MANAGER),
        ("PATCH", "services/seed", "katsura-operator-seed"),
        ("PATCH", "services/kept", MANAGER),
        ("PATCH", "pods/p1", MANAGER),
        ("DELETE", "pods/p2", ""),
        ("DELETE", "services/old", ""),
        ("POST", "events", MANAGER),
        ("PATCH", "pods/p1/status", MANAGER),
    ]
    assert house.told == [("experts", "10.0.0.2:9000")]
    marks = house.server.call("GET", POD.path("n", "p1"))["metadata"]["annotations"]
    assert marks == {"katsura.dev/draining": NOW, "controller.kubernetes.io/pod-deletion-cost": "-1000"}
    assert outcome.writes == len(wrote)


@pytest.mark.parametrize(("status", "conflicts", "refused"), [(409, 1, 0), (404, 1, 0), (403, 0, 1), (422, 0, 1)])
async def test_one_refusal_stops_nothing_else(status: int, conflicts: int, refused: int) -> None:
    house = House()

    def fault(method: str, path: str) -> int:
        return status if method == "PATCH" and path.endswith("/services/a") else 0

    outcome = await house.run(Desired(keep=[service("a"), service("b")]), fault)
    assert (outcome.conflicts, len(outcome.refused)) == (conflicts, refused)
    assert house.server.call("GET", SERVICE.path("n", "b"))


@pytest.mark.parametrize("status", [409, 403])
async def test_what_could_not_be_seeded_is_not_made_without_its_seed(status: int) -> None:
    house = House()
    desired = Desired(seeds=[service("a"), service("b")], keep=[service("a"), service("b")])
    await house.run(desired, lambda method, path: status if method == "PATCH" and path.endswith("/services/a") else 0)
    assert [by for _, path, by in house.asked if path.endswith("/services/a")] == ["katsura-operator-seed"]
    assert house.children() == ["services"]


@pytest.mark.parametrize(("status", "error"), [(429, ResourceExhaustedError), (503, UnavailableError)])
async def test_a_server_that_takes_nothing_ends_the_pass(status: int, error: type[KatsuraError]) -> None:
    house = House()
    with pytest.raises(error):
        await house.run(Desired(keep=[service("a"), service("b")]), lambda method, path: status)
    assert len(house.asked) == 1


async def test_an_event_that_was_told_before_a_crash_is_no_trouble() -> None:
    house = House()
    event = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "n"}}
    for _ in range(2):
        outcome = await house.run(Desired(events=[event]))
        assert (outcome.conflicts, outcome.refused) == (0, [])


async def test_a_pod_without_an_address_is_not_told_and_one_that_cannot_be_told_ends_nothing() -> None:
    house = House()
    silent, deaf = house.put(pod("p1")), house.put(pod("p2", podIP="10.0.0.2"))
    house.trouble = UnavailableError("gone")
    outcome = await house.run(Desired(drain=[silent, deaf], keep=[service("a")]))
    assert house.told == [("experts", "10.0.0.2:9000")]
    assert outcome.refused == []


async def test_a_pod_that_changed_since_it_was_seen_is_not_deleted() -> None:
    house = House()
    seen = house.put(pod("p1"))
    house.server.call("PATCH", POD.path("n", "p1"), {"metadata": {"labels": {"x": "y"}}})
    outcome = await house.run(Desired(remove=[seen]))
    assert outcome.conflicts == 1
    assert house.server.call("GET", POD.path("n", "p1"))


async def test_an_update_of_what_is_gone_makes_nothing() -> None:
    house = House()
    await house.run(Desired(keep=[service("a")]))
    seen = Snapshot({"Service": tuple(house.server.objects.values())}, NOW)
    house.server.call("DELETE", SERVICE.path("n", "a"))
    outcome = await Executor(TwinKube(house.server), house, 9000).run(Desired(keep=[service("a", 2)]), seen)
    assert outcome.conflicts == 1
    assert house.children() == []


def test_a_shared_child_has_no_controller() -> None:
    assert controller_of(make(WORKLOAD, "n", "w", labels={}, owner_of=None)) == ""


async def test_what_changes_nothing_since_others_said_more_is_no_write() -> None:
    """Else another pass would follow at once, for ever."""
    house = House()
    house.server.apply(SERVICE.path("n", "a"), service("a"), MANAGER)
    found = house.server.objects["services", "n", "a"]
    found["status"] = {"loadBalancer": {"by": "others"}}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "n"}, "status": {}}
    done = await house.run(Desired(statuses=[(found, body)]))
    assert (done.writes, len(house.asked)) == (0, 1)
