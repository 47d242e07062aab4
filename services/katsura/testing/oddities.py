"""What API servers really hold beside what we wrote: halves, leftovers of other versions, and the work of many hands.

    odd.act(world, rng)        for any of ODDITIES

An oddity changes objects behind the API server's back, as an older version, another controller or an upgrade of the
schemas did long ago. `tests/property/test_operator_decisions.py` lets operators meet them.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from katsura.testing.beginnings import KINDS, MODEL, node, put
from katsura.testing.operators import World
from katsura_operator.core.objects import CHILDREN, name_of
from katsura_operator.core.snapshot import Sample

LONG: Final = "a" + "-very" * 7 + "-long"
"""A name of 40 characters less one: the longest that our kinds allow, nearly."""


@dataclass(frozen=True)
class Oddity:
    """What may be found. `act`: changes objects, or does nothing where there are none of its kind."""

    name: str
    act: Callable[[World, random.Random], None]


ODDITIES: Final[list[Oddity]] = []


def _odd(act: Callable[[World, random.Random], None]) -> Callable[[World, random.Random], None]:
    ODDITIES.append(Oddity(act.__name__.strip("_").replace("_", " "), act))
    return act


def found(world: World, *kinds: str) -> list[dict[str, Any]]:
    """Objects of these kinds, by kind and name, to be changed in place."""
    objects: dict[tuple[str, str, str], dict[str, Any]] = world.plane.objects
    return [o for _, o in sorted(objects.items()) if o["kind"] in kinds]


def _any(world: World, rng: random.Random, *kinds: str) -> Iterator[dict[str, Any]]:
    """One of them, if there is any."""
    have = found(world, *kinds)
    if have:
        yield rng.choice(have)


# --- statuses and metadata of anything -------------------------------------------------------------------

_WRITTEN: Final = ("ModelDeployment", "MemoryStore", "Agent", "AcceleratorProfile", "RolePool")
_EVERY: Final = (*_WRITTEN, "PlacementPlan", "Deployment", "Service", "PodDisruptionBudget", "Pod", "Node")
_ABSURD: Final = (0.0, -1.0, math.nan, math.inf, 1e300, 1e-300)


@_odd
def _a_status_is_null(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_EVERY):
        obj["status"] = None


@_odd
def _a_status_is_missing(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_EVERY):
        obj.pop("status", None)


@_odd
def _a_part_of_a_status_is_null_or_missing(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_EVERY):
        _lose(obj.get("status"), rng)


@_odd
def _metadata_without_maps(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_EVERY):
        for field in ("labels", "annotations", "ownerReferences", "finalizers"):
            if rng.random() < 0.5:
                obj["metadata"].pop(field, None)
            else:
                obj["metadata"][field] = None


@_odd
def _conditions_of_an_older_operator(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_WRITTEN):
        for condition in (obj.get("status") or {}).get("conditions") or ():
            for field in ("lastTransitionTime", "observedGeneration", "message"):
                if rng.random() < 0.5:
                    condition.pop(field, None)
        conditions = (obj.setdefault("status", {}) or {}).setdefault("conditions", [])
        if conditions is not None:
            conditions.append({"type": "Stalled", "status": "Unknown", "reason": "Older"})


@_odd
def _an_unknown_field_of_a_newer_version(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_WRITTEN):
        part = rng.choice(("spec", "status"))
        obj[part] = {**(obj.get(part) or {}), "mood": {"is": "good"}}


@_odd
def _an_unknown_word_of_a_newer_version(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_WRITTEN):
        _say(obj["spec"], rng, "SomethingNew")


@_odd
def _a_field_that_is_required_now_is_missing(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_WRITTEN):
        _lose(obj["spec"], rng)


@_odd
def _a_finalizer_keeps_what_is_deleted(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *_WRITTEN, "Deployment", "Service", "Pod", "PlacementPlan"):
        obj["metadata"]["deletionTimestamp"] = "2026-11-21T11:00:00Z"
        obj["metadata"]["finalizers"] = [*(obj["metadata"].get("finalizers") or ()), "someone.else/keeps"]


@_odd
def _a_child_is_deleted_by_hand(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, *(kind.name for kind in CHILDREN), "RolePool"):
        world.plane.call("DELETE", KINDS[obj["kind"]].path(obj["metadata"]["namespace"], name_of(obj)))


@_odd
def _a_child_is_edited_by_hand(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, "Deployment", "Service", "PodDisruptionBudget"):
        match rng.randrange(3):
            case 0:
                obj["spec"]["replicas"] = rng.choice((0, 3, None))
            case 1:
                obj["metadata"].setdefault("labels", {})["katsura.dev/pool"] = "elsewhere"
            case _:
                obj["metadata"].setdefault("annotations", {})["katsura.dev/applied"] = "by hand"


def _nodes_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below `value`."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(entries):
        yield value, key
        yield from _nodes_of(child)


def _lose(value: Any, rng: random.Random) -> None:
    """One field somewhere below is gone, or null."""
    fields = [(at, key) for at, key in _nodes_of(value) if isinstance(at, dict)]
    if fields:
        at, key = rng.choice(fields)
        if rng.random() < 0.5:
            del at[key]
        else:
            at[key] = None


def _say(value: Any, rng: random.Random, word: str) -> None:
    """One text somewhere below is another."""
    fields = [(at, key) for at, key in _nodes_of(value) if isinstance(at[key], str)]
    if fields:
        at, key = rng.choice(fields)
        at[key] = word


# --- plans -----------------------------------------------------------------------------------------------


@_odd
def _a_plan_without_status(world: World, rng: random.Random) -> None:
    for plan in _any(world, rng, "PlacementPlan"):
        plan.pop("status", None)


@_odd
def _a_plan_with_a_name_of_its_own(world: World, rng: random.Random) -> None:
    names = ("mine", "plan-999999", "plan-1000000", "plan-latest", "zz-copy-of-plan-000001", "plan-", "00")
    for plan in _any(world, rng, "PlacementPlan"):
        name = rng.choice(names)
        copied = put(world, "PlacementPlan", name, spec=copy.deepcopy(plan["spec"]))
        if rng.random() < 0.7 and "status" in plan:
            copied["status"] = copy.deepcopy(plan["status"])
        if rng.random() < 0.5:
            copied["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "katsura-operator"}
        if rng.random() < 0.3:
            copied["spec"]["inputsHash"] = "of-old"


@_odd
def _a_plan_of_an_older_version(world: World, rng: random.Random) -> None:
    for plan in _any(world, rng, "PlacementPlan"):
        if rng.random() < 0.5:
            plan["spec"]["inputsHash"] = "of-old"
        for _ in range(rng.randrange(1, 4)):
            _lose(plan.get("status"), rng)


@_odd
def _a_plan_without_lists(world: World, rng: random.Random) -> None:
    for plan in _any(world, rng, "PlacementPlan"):
        for field, value in list((plan.get("status") or {}).items()):
            if isinstance(value, list) and rng.random() < 0.4:
                plan["status"][field] = None


@_odd
def _a_plan_of_another_number(world: World, rng: random.Random) -> None:
    for plan in _any(world, rng, "PlacementPlan"):
        fields = [(a, k) for a, k in _nodes_of(plan.get("status")) if isinstance(a[k], int | float)]
        if fields:
            at, key = rng.choice(fields)
            at[key] = rng.choice((0, -1, 10**12, True, 1e300))


@_odd
def _plans_are_gone(world: World, rng: random.Random) -> None:
    for plan in found(world, "PlacementPlan"):
        world.plane.call("DELETE", KINDS["PlacementPlan"].path("space", name_of(plan)))


@_odd
def _a_plan_of_nothing_is_approved(world: World, rng: random.Random) -> None:
    for obj in _any(world, rng, "ModelDeployment"):
        if (obj.get("spec") or {}).get("model"):
            obj["spec"] |= {"placement": {"advisory": True}, "approvedPlan": rng.choice(("none", "plan-000001"))}


# --- pools and pods --------------------------------------------------------------------------------------


@_odd
def _a_pool_is_scaled(world: World, rng: random.Random) -> None:
    for pool in _any(world, rng, "RolePool"):
        pool["spec"]["replicas"] = rng.choice((0, 2, 256, 1000, None))
        pool["metadata"]["generation"] += 1


@_odd
def _a_pool_that_nobody_asked_for(world: World, rng: random.Random) -> None:
    role = rng.choice(("router", "attention", "experts", "unified", "dreamer"))
    labels = rng.choice(({}, {"katsura.dev/pool": f"ghost-{role}"}))
    ours = rng.choice(({}, {"app.kubernetes.io/managed-by": "katsura-operator"}))
    name = rng.choice((f"ghost-{role}", "katsura-router", f"chat-{role}"))
    if not any(name_of(p) == name for p in found(world, "RolePool")):
        put(world, "RolePool", name, metadata={"labels": {**labels, **ours}}, spec={"role": role})


@_odd
def _a_pod_in_trouble(world: World, rng: random.Random) -> None:
    for pod in _any(world, rng, "Pod"):
        state = rng.choice(
            (
                {"waiting": None},
                {"waiting": {"reason": "ImagePullBackOff", "message": "größer" * 300}},
                {"terminated": {"exitCode": 137, "message": None, "reason": "OOMKilled"}},
            )
        )
        containers = [{"name": "c", "state": state, "lastState": {}}, {"name": "d", "state": None, "lastState": None}]
        pod["status"] = rng.choice(
            (
                {"phase": "Pending"},
                {"phase": "Unknown", "conditions": None, "containerStatuses": None},
                {"phase": "Failed", "reason": "Evicted", "message": "gone", "conditions": []},
                {"phase": "Running", "conditions": [{"type": "Ready", "status": "Unknown"}]},
                {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]},
                {"phase": "Running", "containerStatuses": containers, "conditions": [{"type": "Ready"}]},
            )
        )
        pod["spec"] = rng.choice((pod["spec"], {**pod["spec"], "nodeName": "gone"}, {"containers": []}, {}))


@_odd
def _a_pod_ends(world: World, rng: random.Random) -> None:
    for pod in _any(world, rng, "Pod"):
        pod["metadata"] |= {"deletionTimestamp": "2026-11-21T11:59:00Z", "finalizers": ["kubelet/ends"]}


@_odd
def _a_pod_was_marked_by_hand(world: World, rng: random.Random) -> None:
    times = ("yesterday", "", "2026-11-21", "2026-11-21T11:00:00", "2026-11-21T11:00:00Z", "2099-01-01T00:00:00Z")
    for pod in _any(world, rng, "Pod"):
        marks = {"katsura.dev/draining": rng.choice(times)}
        pod["metadata"]["annotations"] = {**(pod["metadata"].get("annotations") or {}), **marks}


@_odd
def _a_pod_of_somebody_else(world: World, rng: random.Random) -> None:
    cpu = rng.choice(("4", "8", "1000", "100m", "0.5", "1k", "100u", "-1", "", "5e3", 3, None))
    memory = rng.choice(("1Gi", "64Gi", "10Ei", "128974848000m", "1e9", "", None))
    asked = rng.choice(({"cpu": cpu, "memory": memory}, {"nvidia.com/gpu": "1k"}, {}, None))
    container = {"name": "c", "resources": rng.choice(({"requests": asked}, {"limits": asked}, {}, None))}
    spec = rng.choice(({"containers": [container], "nodeName": "a"}, {"containers": [container]}, {"containers": None}))
    labels = rng.choice(({}, {"katsura.dev/pool": "chat-unified", "katsura.dev/role": "unified"}))
    metadata = {"labels": labels} if labels else {}
    status = rng.choice((None, {}, {"phase": "Running", "podIP": "10.0.0.9"}))
    owners = [{"apiVersion": "v1", "kind": "Thing", "name": "x", "uid": "elsewhere"}]
    put(world, "Pod", "theirs", metadata={**metadata, "ownerReferences": owners}, spec=spec, status=status)


# --- nodes and devices -----------------------------------------------------------------------------------


@_odd
def _a_node_is_odd(world: World, rng: random.Random) -> None:
    for there in _any(world, rng, "Node"):
        amounts = there.setdefault("status", {}) or {}
        taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
        match rng.randrange(9):
            case 0:
                there["spec"] = {"unschedulable": True}
            case 1:
                there["spec"] = {"taints": [taint]}
            case 2:
                amounts["conditions"] = [{"type": "Ready", "status": "Unknown"}]
            case 3:
                amounts["allocatable"] = {**(amounts.get("allocatable") or {}), "cpu": _quantity(rng)}
            case 4:
                amounts["allocatable"] = {**(amounts.get("allocatable") or {}), "memory": _quantity(rng)}
            case 5:
                amounts["allocatable"] = {**(amounts.get("allocatable") or {}), "nvidia.com/gpu": _quantity(rng)}
            case 6:
                there["metadata"]["labels"] = {"kubernetes.io/hostname": "renamed"}
            case 7:
                there["metadata"]["labels"] = {"topology.kubernetes.io/zone": "", "nvidia.com/gpu.product": "Odd-9000"}
            case _:
                there["spec"] = {"taints": [{"key": "ours", "effect": "NoSchedule"}, {}]}


@_odd
def _a_node_with_accelerators(world: World, rng: random.Random) -> None:
    product = rng.choice(("NVIDIA-H100-80GB-HBM3", "NVIDIA-L4", "Tesla-T4", "NVIDIA-GB9999"))
    made = node(world, f"gpu-{rng.randrange(3)}", cpu=rng.choice(("1", "32")), **{"nvidia.com/gpu.product": product})
    made["status"]["allocatable"] = {**made["status"]["allocatable"], "nvidia.com/gpu": _quantity(rng, "1", "8")}


@_odd
def _nodes_are_gone(world: World, rng: random.Random) -> None:
    for there in found(world, "Node"):
        world.plane.call("DELETE", KINDS["Node"].path("", name_of(there)))


@_odd
def _a_slice_is_odd(world: World, rng: random.Random) -> None:
    device: Any = rng.choice((None, {}, {"name": "d", "attributes": {"productName": {"string": "NVIDIA L4"}}}))
    spec = rng.choice((None, {}, {"nodeName": "a", "devices": [device]}, {"nodeName": "a", "devices": None}))
    put(world, "ResourceSlice", "a-gpus", spec=spec)


def _quantity(rng: random.Random, *usual: str) -> Any:
    return rng.choice(
        usual
        or ("0", "1", "100m", "7910m", "1k", "1Pi", "1e3", "0.5", "-1", "lots", "", None, 4, "9223372036854775807")
    )


# --- what people ask for ---------------------------------------------------------------------------------


@_odd
def _a_deployment_is_odd(world: World, rng: random.Random) -> None:
    name = rng.choice(("odd", LONG, "chat-unified", "katsura", "default", "default-memory", "chat-router", "0"))
    spec: dict[str, Any] = {"model": dict(MODEL), "topology": "Unified"}
    match rng.randrange(10):
        case 0:
            spec["model"] = {"source": "pypi://unknown-model"}
        case 1:
            spec["model"] = {"source": "pypi://unknown", "card": "nobody/knows"}
        case 2:
            spec["traffic"] = {"requestsPerSecond": rng.choice((0, 1e-05, 1e6, 0.5)), "outputTokens": 1 << 20}
        case 3:
            spec["slo"] = {"itlMs": 1, "ttftMs": 1}
        case 4:
            spec["placement"] = {"devices": ["H9000"], "minDomains": 16}
        case 5:
            spec["kv"] = {"bytes": rng.choice((1 << 44, "16Ti", 1 << 20)), "pageTokens": 1}
        case 6:
            spec["roles"] = {"unified": {"scaling": {"min": 0, "max": 256}}}
        case 7:
            spec["placement"] = {"topologies": ["Split", "Unified"], "spotShare": 1}
        case 8:
            spec = {"model": MODEL, "ffn": {"slices": 1, "groups": 1}, "kv": {"pageTokens": 1}}
        case _:
            spec["drainTimeoutSeconds"] = 0
    number = "2026-11-21T08:00:01Z"
    put(
        world,
        "ModelDeployment",
        name,
        rng.choice(("space", "space", "elsewhere")),
        spec=spec,
        metadata={"creationTimestamp": number},
    )


@_odd
def _an_engine_is_odd(world: World, rng: random.Random) -> None:
    amounts = (
        {"cpu": "100u"},
        {"cpu": "1n"},
        {"memory": "1.5Gi"},
        {"nvidia.com/gpu": "1"},
        {"cpu": "0.1"},
        {"memory": "1Pi"},
    )
    engine: dict[str, Any] = {"image": "x", "args": ["--say", "größer 🚀", ""], "resources": rng.choice(amounts)}
    engine["replicas"] = rng.choice((0, 1, 256))
    put(world, "ModelDeployment", "engine", spec={"model": MODEL, "engine": "external", "external": engine})


@_odd
def _a_namesake_elsewhere(world: World, rng: random.Random) -> None:
    kind = rng.choice(("ModelDeployment", "MemoryStore", "Agent"))
    for obj in _any(world, rng, kind):
        put(world, kind, name_of(obj), "elsewhere", spec=copy.deepcopy(obj["spec"]))


@_odd
def _a_store_is_odd(world: World, rng: random.Random) -> None:
    name = rng.choice(("chat", "lively", "odd", LONG, "katsura", "default"))
    urls = (
        "redis://host:port/0",
        "redis://[bad",
        "redis://h:99999/0",
        "unix:///run/x?db=a",
        "redis://h/?db=",
        "redis://ok/1",
    )
    spec: dict[str, Any] = rng.choice(
        (
            {"redis": {"url": rng.choice(urls)}},
            {"redis": {"url": rng.choice(urls)}, "deletionPolicy": "Delete"},
            {"archive": {"pvc": "cold"}, "hints": {}},
            {"replicas": 64},
            {"redis": None, "archive": None, "hints": None},
            {},
        )
    )
    put(world, "MemoryStore", name, spec=spec)


@_odd
def _a_store_is_deleted_with_its_trees(world: World, rng: random.Random) -> None:
    for store in _any(world, rng, "MemoryStore"):
        store["spec"] = {**(store.get("spec") or {}), "deletionPolicy": "Delete"}
        store["metadata"] |= {"deletionTimestamp": "2026-11-21T11:00:00Z", "finalizers": ["katsura.dev/purge"]}


@_odd
def _a_store_is_gone(world: World, rng: random.Random) -> None:
    for store in _any(world, rng, "MemoryStore"):
        store["metadata"].pop("finalizers", None)
        world.plane.call("DELETE", KINDS["MemoryStore"].path(store["metadata"]["namespace"], name_of(store)))


@_odd
def _an_agent_is_odd(world: World, rng: random.Random) -> None:
    nothing = {"modelRef": {"name": "nothing"}, "memoryRef": {"name": "nothing"}}
    rates = rng.choice((0, 1, 1e6))
    flow = {"runsPerSecond": rates, "calls": [{"name": "a", "modelRef": {"name": "nothing"}}, {"name": "b"}]}
    loop = {"runsPerSecond": rates, "calls": [{"name": "a"}], "edges": [{"before": "a", "after": "a"}]}
    tight = {"runsPerSecond": rates, "calls": [{"name": "a", "promptTokens": 1}], "seconds": 1}
    empty: dict[str, Any] = {"runsPerSecond": rates, "calls": []}
    chat = {"modelRef": {"name": "chat"}}
    flows = (nothing, *({**chat, "flow": f} for f in (flow, loop, tight, empty)), {**nothing, "flow": tight})
    spec = rng.choice((*flows, {**chat, "memoryRef": None}, {**chat, "flow": None}))
    put(world, "Agent", "odd", spec=copy.deepcopy(spec))


@_odd
def _a_profile_is_odd(world: World, rng: random.Random) -> None:
    inventory = [{"nodes": 2, "perNode": 4, "memory": "64Gi"}]
    specs: tuple[dict[str, Any], ...] = (
        {},
        {"device": "H9000"},
        {"device": "H100", "inventory": inventory, "quota": 0},
        {"device": "cpu", "inventory": inventory * 2},
        {"nodeSelector": {"kubernetes.io/hostname": "a"}, "resource": "x/y", "device": "L4"},
        {"device": "H9000", "capabilities": {"bf16Teraflops": 1e-9, "memoryGbPerSecond": 1e-9}, "inventory": inventory},
        {"device": "H9000", "capabilities": {"bf16Teraflops": 1, "memoryGbPerSecond": 1, "memoryGib": 1}},
        {
            "device": "L4",
            "cost": {"perHour": 0},
            "inventory": [{"nodes": 1, "perNode": 1, "cores": 1, "memory": "1Mi"}],
        },
        {"inventory": [], "nodeSelector": None, "capabilities": None, "cost": None},
    )
    put(world, "AcceleratorProfile", rng.choice(("odd", "cpu", "h100", "x.y")), spec=copy.deepcopy(rng.choice(specs)))


@_odd
def _a_profile_was_calibrated_by_another_version(world: World, rng: random.Random) -> None:
    for profile in _any(world, rng, "AcceleratorProfile"):
        numbers = {"weights": 1.0, "kv": rng.choice((0.0, None, "x", 1.0))}
        said = {"errorClass": rng.choice(("measured", "newer", None)), "coefficients": rng.choice((None, {}, numbers))}
        profile["status"] = {"calibration": rng.choice((said, None, {}))}


# --- what was measured, and clocks -----------------------------------------------------------------------


@_odd
def _samples_are_absurd(world: World, rng: random.Random) -> None:
    pods = [p for p in found(world, "Pod") if (p["metadata"].get("labels") or {}).get("katsura.dev/revision")]
    if not pods:
        return
    pod = rng.choice(pods)
    labels, namespace = pod["metadata"]["labels"], pod["metadata"]["namespace"]
    deployment = f"{namespace}/{labels.get('katsura.dev/deployment')}"
    sane = (0.5, 8.0, 500.0)
    odd = [rng.choice((v, v, *_ABSURD)) for v in sane]
    shape = (rng.choice((0, 0, 1)), rng.choice((16.0, 1.0, 0.0, math.nan, 8.0)))
    node = rng.choice(("", "a", "gone"))
    sample = Sample(deployment, labels["katsura.dev/revision"], node, *shape, *odd)
    world.samples = (sample,) * rng.choice((1, 6, 40))


@_odd
def _what_was_measured_is_of_another_version(world: World, rng: random.Random) -> None:
    whole = {"name": "cpu x16", "ratio": 1.5, "time": "2026-11-20T00:00:00Z", "error90": 1.1, "samples": 6}
    whole |= {"counts": True, "basis": "0123", "stepMs": 1.0, "predictedMs": 1.0, "batch": 1.0, "context": 1}
    for obj in _any(world, rng, "ModelDeployment"):
        entry: dict[str, Any] = dict(whole)
        for _ in range(rng.randrange(3)):
            key = rng.choice(sorted(whole))
            odd = (None, "x", 0, -1.0, "cpu xx", " x0", "2026-13-40T00:00:00Z", math.inf)
            entry.pop(key, None) if rng.random() < 0.4 else entry.update({key: rng.choice(odd)})
        status = obj.get("status") or {}
        obj["status"] = {**status, "measured": rng.choice(([entry], [entry, dict(whole)], [{}], None))}


@_odd
def _a_clock_goes_back(world: World, rng: random.Random) -> None:
    world.now = rng.choice(("2020-01-01T00:00:00Z", "2099-12-31T23:59:59Z", "1970-01-01T00:00:00Z"))


@_odd
def _members_are_odd(world: World, rng: random.Random) -> None:
    world.odd = tuple(o["metadata"]["uid"] for o in found(world, "Pod") if rng.random() < 0.5)
