"""What holds for every decision on situations such as clusters get into: full nodes, odd prices, things that vanish."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from katsura.domain.errors import KatsuraError
from katsura.manifests.bundle import read_manifests
from katsura.manifests.cluster import ROLE_LABEL
from katsura.manifests.decision import Decision, Situation, decide
from katsura.manifests.problem import Options
from katsura.manifests.rules import ManifestError
from katsura.placement.card import published
from katsura.placement.document import Current, Running, current_of, running, schema
from katsura.placement.patterns import Memo, enumerate_patterns
from katsura.placement.problem import Effort, ModelService, NodeClass, Objective, Problem
from katsura.placement.program import exact_instances
from katsura.placement.standing import named_now

EFFORT = Effort(gap=0.01, nodes=20, seconds=None)
SETTINGS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # to shrink one takes minutes
    suppress_health_check=list(HealthCheck),
)
Object = dict[str, Any]
PRODUCTS = ("Tesla-T4", "NVIDIA-L4", "NVIDIA-L40S", "NVIDIA-A100-SXM4-80GB", "NVIDIA-H100-80GB-HBM3", "NVIDIA-B300")
ODD = (None, "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "NVIDIA-GH999")


def pick(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def mostly(usual: Any, *odd: Any) -> st.SearchStrategy[Any]:
    """Situations are mostly sound: one in twenty or so of their parts is odd."""
    return st.integers(0, 19).flatmap(lambda n: pick(*odd) if n == 19 else st.just(usual))


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def nodes(draw: st.DrawFn) -> Object:
    product = draw(pick("NVIDIA-L4", "NVIDIA-H100-80GB-HBM3", None, *PRODUCTS))
    product = draw(mostly(product, *ODD))
    labels = {"nvidia.com/gpu.product": product} if product else {}
    labels |= draw(pick({}, {}, {"topology.kubernetes.io/zone": "a"}, {"topology.kubernetes.io/zone": "b"}))
    labels |= draw(pick({}, {}, {}, {"karpenter.sh/capacity-type": "spot"}, {"pool": "own"}))
    gpus = draw(pick("4", "8", "2", "1") | mostly("8", "0", "3", None)) if product else draw(mostly(None, "2"))
    can = {
        "cpu": draw(pick("64", "96", "31853m") | mostly("64", "4", "1", "7910m", "500m", "0", "250m", "1900m")),
        "memory": draw(
            pick("256Gi", "512Gi", "2Ti") | mostly("256Gi", "64Gi", "7837448Ki", "1Gi", "512Mi", "0", "33Gi")
        ),
    } | ({} if gpus is None else {"nvidia.com/gpu": gpus})
    taints = [[{"key": key, "effect": "NoSchedule"}] for key in ("nvidia.com/gpu", "x")]
    spec = draw(mostly({}, {"unschedulable": True}, {"taints": taints[0]}, {"taints": taints[1]}))
    status = draw(mostly({"allocatable": can}, {"capacity": can}, {}))
    return {"metadata": {"name": f"n{draw(st.integers(0, 99))}", "labels": labels}, "spec": spec, "status": status}


def names_of(found: Sequence[Object]) -> st.SearchStrategy[str]:
    return pick("nowhere", *(n["metadata"]["name"] for n in found))


@st.composite
def slices(draw: st.DrawFn, on: Sequence[Object]) -> Object:
    name = draw(pick("NVIDIA L4", "NVIDIA H100 80GB HBM3", "Strange"))
    devices = [{"name": f"g{i}", "attributes": {"productName": {"string": name}}} for i in range(draw(pick(1, 2, 8)))]
    return {"spec": {"nodeName": draw(names_of(on)), "devices": devices}}


@st.composite
def pods(draw: st.DrawFn, on: Sequence[Object]) -> Object:
    asked = {"cpu": draw(pick("100m", "1", "3500m", "16", "500")), "memory": draw(mostly("1Gi", "0", "63Gi", "9Ti"))}
    asked |= draw(mostly({}, {"nvidia.com/gpu": "1"}, {"nvidia.com/gpu": "8"}))
    labels = draw(mostly({}, {ROLE_LABEL: "unified"}))
    spec = {"nodeName": draw(names_of(on)), "containers": [{"resources": {"requests": asked}}]}
    return {"metadata": {"labels": labels}, "spec": spec, "status": {"phase": draw(pick("Running", "Failed"))}}


def resource(kind: str, name: str, spec: Object) -> Object:
    bare = {key: value for key, value in spec.items() if value is not None}
    return {"apiVersion": "katsura.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": bare}


@st.composite
def deployments(draw: st.DrawFn, name: str) -> Object:
    topology = draw(pick("Unified", "Split"))
    roles = draw(
        mostly({}, {"unified": {"replicas": 1}}, {"unified": {"replicas": 3}}, {"unified": {"replicas": 256}})
        if topology == "Unified"
        else mostly(
            {},
            {"attention": {"replicas": 2}},
            {"experts": {"replicas": 1}},
            {"attention": {"replicas": 256}, "experts": {"replicas": 8}},
        )
    )
    roles |= draw(pick({}, {}, {"router": {"replicas": 2}}))
    traffic = maybe(
        st.fixed_dictionaries(
            {
                "requestsPerSecond": pick(1, 5, 0.01) | mostly(2, 0, 30, 1_000_000),
                "promptTokens": mostly(1000, 1, 8000, 1 << 21),
                "outputTokens": mostly(200, 1, 1000, 1 << 20),
                "cachedShare": mostly(0.5, 0, 1),
            }
        )
    )
    slo = st.fixed_dictionaries(
        {"itlMs": mostly(None, 1, 30, 600_000) | pick(100), "ttftMs": mostly(None, 1, 3_600_000) | pick(5000)}
    )
    placement = st.fixed_dictionaries(
        {
            "topologies": pick([topology], ["Unified", "Split"]) | mostly([topology], ["Unified"], ["Split"]),
            "devices": mostly([], ["L4"], ["cpu", "H100"], ["mine"], ["nothing"]),
            "minDomains": mostly(1, 2, 16),
            "spotShare": pick(0, 1, 0.5),
        }
    )
    return resource(
        "ModelDeployment",
        name,
        {
            "model": {
                "source": "file:///m",
                "card": draw(
                    pick("Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B")
                    | mostly("HuggingFaceTB/SmolLM2-135M-Instruct", *published())
                ),
            },
            "topology": topology,
            "roles": roles,
            "ffn": draw(
                mostly(
                    {"slices": 32, "groups": 16},
                    {"slices": 1, "groups": 1},
                    {"slices": 64, "groups": 64},
                    {"slices": 12, "groups": 6},
                )
            ),
            "dtype": draw(mostly("bf16", "f32")),
            "kv": {"bytes": draw(mostly("8Gi", "1Mi", "512Mi", "16Ti"))},
            "traffic": draw(traffic),
            "slo": draw(slo),
            "placement": draw(placement),
        },
    )


@st.composite
def profiles(draw: st.DrawFn, name: str) -> Object:
    device = draw(pick("L4", "H100", "B300", "cpu", "T4", None))
    can = st.fixed_dictionaries(
        {"bf16Teraflops": pick(0.001, 50, 1_000_000), "memoryGbPerSecond": pick(0.001, 300, 1_000_000)},
        optional={"memoryGib": pick(0, 0.5, 24, 65536), "watts": pick(0, 100), "interGbPerSecond": pick(0.001, 10)},
    )
    inventory = st.fixed_dictionaries(
        {"nodes": pick(1, 2, 40), "perNode": pick(1, 3, 8, 1024)},
        optional={
            "cores": pick(1, 8, 4096),
            "memory": pick("1Mi", "32Gi"),
            "domain": pick("a", "b", "c"),
            "spot": st.booleans(),
        },
    )
    return resource(
        "AcceleratorProfile",
        name,
        {
            "device": device,
            "nodeSelector": draw(pick({}, {"pool": "own"})),
            "resource": draw(pick(None, None, "nvidia.com/gpu", "example.com/odd")),
            "capabilities": draw(can) if device is None else draw(mostly({}, {"watts": 0})),
            "cost": draw(
                pick(None, {"perHour": 0}, {"perHour": 1}, {"perHour": 10_000, "spotPerHour": 0}, {"perHour": 0.3})
            ),
            "quota": draw(mostly(None, 0, 1, 12)),
            "inventory": draw(st.lists(inventory, max_size=2, unique_by=str)),
        },
    )


@st.composite
def agents(draw: st.DrawFn, name: str, models: Sequence[str], stores: Sequence[str]) -> Object:
    calls: list[Object] = [{"name": "ask"}]
    calls += draw(
        pick(
            [],
            [{"name": "tool", "toolSeconds": 86_400}],
            [{"name": "tool", "toolSeconds": 0}, {"name": "more", "outputTokens": 4000}],
        )
    )
    edges = draw(
        pick(
            [],
            [{"before": "ask", "after": "ask", "probability": 0.9}],
            [{"before": "ask", "after": "ask", "probability": 0.9997}],
        )
    )
    edges += [{"before": "ask", "after": c["name"], "probability": 0.0001} for c in calls[1:]]
    flow = {"runsPerSecond": draw(pick(0.1, 0.01) | mostly(1, 0, 1_000_000)), "calls": calls, "edges": edges}
    seconds = draw(pick(None, 60, 20) | pick(1, 604_800))
    flow |= {} if seconds is None else {"seconds": seconds}
    spec = {"modelRef": {"name": draw(pick(*models))}, "flow": draw(pick(None, flow, flow))}
    spec |= {"memoryRef": {"name": draw(pick(*stores))}} if stores and draw(st.booleans()) else {}
    return resource("Agent", name, spec)


@st.composite
def worlds(draw: st.DrawFn) -> Object:
    """Everything that a situation is read from, as plain data that `changed` may change."""
    names = draw(pick(["chat"], ["chat", "code"], ["chat", "chat-router"], ["chat", "code", "trees-memory"]))
    stores = draw(pick([], [], ["trees"], ["trees", "more"]))
    ours = [draw(deployments(name)) for name in names]
    ours += [resource("MemoryStore", name, {"replicas": draw(mostly(1, 2, 64))}) for name in stores]
    ours += [draw(profiles(name)) for name in draw(pick([], [], ["mine"], ["mine", "l4"], ["mine", "cpu"]))]
    ours += [draw(agents(name, names, stores)) for name in draw(pick([], [], ["bot"], ["bot", "crew"]))]
    found = draw(st.lists(nodes(), min_size=draw(mostly(3, 0, 1)), max_size=8))
    told, others = draw(st.lists(slices(found), max_size=1)), draw(st.lists(pods(found), max_size=2))
    return {"ours": ours, "nodes": found, "slices": told, "pods": others}


OPTIONS = st.builds(
    Options,
    objective=pick(Objective.COST) | pick(*Objective),
    budget_usd=mostly(None, 0.0, 2.0, 40.0),
    confidence=mostly(0.9, 0.5),
    helpers=mostly(True, False),
    pairs=mostly(False, True),
    pipelines=mostly(False, None, True),
)


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, Any]:
    """What may happen to a world between two decisions."""
    what = draw(
        pick("same", "fewer nodes", "other nodes", "deployment gone", "traffic", "pods", "prices", "card", "all")
    )
    match what:
        case "other nodes":
            return what, draw(st.lists(nodes(), max_size=2))
        case "traffic":
            return what, draw(pick(0, 0.5, 1.3, 100))
        case "pods":
            return what, draw(pick("1", "3500m", "30", "500"))
        case "prices":
            return what, draw(pick(0, 0.01, 5))
        case "card":
            return what, draw(pick(*published()))
        case "all":
            return what, draw(worlds())
        case _:
            return what, draw(st.integers(0, 7))


def changed(world: Object, change: tuple[str, Any]) -> Object:
    what, value = change
    made: Object = json.loads(json.dumps(world))
    models = [o for o in made["ours"] if o["kind"] == "ModelDeployment"]
    match what:
        case "fewer nodes":
            made["nodes"] = made["nodes"][:value]
        case "other nodes":
            made["nodes"] += value
        case "pods":
            where = [n["metadata"]["name"] for n in made["nodes"][::2]]
            asked = {"resources": {"requests": {"cpu": value, "memory": "1Gi"}}}
            made["pods"] += [{"spec": {"nodeName": name, "containers": [asked]}} for name in where]
        case "deployment gone":
            gone = models[0]["metadata"]["name"] if len(models) > 1 else ""
            made["ours"] = [
                o
                for o in made["ours"]
                if o["metadata"]["name"] != gone and o["spec"].get("modelRef", {}).get("name") != gone
            ]
        case "card":
            models[0]["spec"]["model"]["card"] = value
        case "traffic":
            for model in models:
                if said := model["spec"].get("traffic"):
                    said["requestsPerSecond"] = min(1e6, said["requestsPerSecond"] * value)
        case "prices":
            for profile in (o for o in made["ours"] if o["kind"] == "AcceleratorProfile"):
                profile["spec"]["cost"] = {"perHour": value}
        case "all":
            return dict(value)
    return made


def situation(world: Object, current: Any = None) -> Situation:
    bundle = read_manifests([(f"{i}.yaml", json.dumps(o)) for i, o in enumerate(world["ours"])])
    return Situation(bundle, world["nodes"], world["slices"], world["pods"], current=current)


def decided(world: Object, options: Options, current: Any = None, memo: Memo | None = None) -> Decision | None:
    """The decision, or None where the situation is refused in words."""
    try:
        return decide(situation(world, current), EFFORT, options=options, memo=memo)
    except ManifestError:
        return None
    except KatsuraError as error:
        if error.code not in ("FAILED_PRECONDITION", "INVALID_ARGUMENT") or len(str(error)) < 20:
            raise
        return None


def used_by(current: Current) -> Mapping[str, list[float]]:
    used: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for p in (p for i in current.instances for p in i.places):
        for k, amount in enumerate((p.accelerators, p.cores, p.ram_bytes)):
            used[p.node][k] += amount
    return used


def crowded(problem: Problem, current: Current) -> set[str]:
    """Nodes of `problem` on which `current` takes more than there is."""
    have = {n: (c.accelerators, c.cores, c.ram_bytes) for c in problem.classes for n in c.nodes}
    return {
        node
        for node, taken in used_by(current).items()
        if node in have and any(t > h * (1 + 1e-6) + 1e-5 for t, h in zip(taken, have[node], strict=True))
    }


def check_plan(found: Decision, before: Current) -> None:
    problem, plan = found.problem, found.change.plan
    made, classes = running(plan), {c.name: c for c in problem.classes}
    assert len(classes) == len(problem.classes)
    assert len({s.name for s in problem.services}) == len(problem.services)
    assert {p.node for i in made.instances for p in i.places} <= {n for c in problem.classes for n in c.nodes}
    assert not crowded(problem, made)
    check_limits(problem, found, classes)
    jsonschema.validate(found.document, schema())
    json.dumps(found.document, allow_nan=False)
    read = current_of(json.loads(json.dumps(found.document)))
    shown = [
        sorted(
            (i.key, i.service, *((p.role, p.node_class, p.node, p.accelerators) for p in i.places)) for i in c.instances
        )
        for c in (read, made)
    ]
    assert shown[0] == shown[1]
    assert plan.gap >= 0
    if problem.objective is Objective.THROUGHPUT:
        assert plan.bound >= plan.value * (1 - 1e-6) - 1e-6
    else:
        assert plan.bound <= plan.value * (1 + 1e-6) + 1e-6, (plan.bound, plan.value)
    assert plan.feasible or plan.binding or plan.relaxations or plan.refused
    assert sum(p.processes for p in found.pools) == sum(len(i.places) for i in made.instances)
    check_steps(found, before)


def check_limits(problem: Problem, found: Decision, classes: Mapping[str, NodeClass]) -> None:
    plan = found.change.plan
    if problem.budget_usd is not None:
        assert plan.hourly_usd <= problem.budget_usd + 1e-6
    taken: Counter[str] = Counter()
    for p in (p for i in plan.instances for p in i.places):
        c = classes[p.node_class]
        taken[(c.device or c.core).name] += p.accelerators if c.device is not None else p.cores
    assert all(taken[name] <= most + 1e-6 for name, most in problem.quotas.items()), (taken, problem.quotas)
    for service, said in zip(problem.services, plan.services, strict=True):
        mine = [i.column for i in plan.instances if i.column.service == service.name]
        spot = sum(c.requests_s for c in mine if c.spot)
        assert spot <= service.spot_share * said.capacity * (1 + 1e-6) + 1e-6
        exact = exact_instances(service)
        assert exact is None or len(mine) <= exact
        if said.unmet <= 1e-6:
            assert said.capacity >= service.requests_s * (1 - 1e-5)
            assert len({c.domain for c in mine}) >= service.domains_min
        if isinstance(service, ModelService) and service.devices:
            assert all(
                (classes[m.node_class].device or classes[m.node_class].core).name in service.devices
                for c in mine
                for m in c.members
            )


def check_steps(found: Decision, before: Current) -> None:
    """Each step finds what it stops, has room, and the last one leaves the plan."""
    columns = enumerate_patterns(found.problem).columns(found.problem.classes)
    standing = list(named_now(before, found.problem.classes, columns)[0].instances)
    wanted = running(found.change.plan)
    if found.change.kept:
        assert not found.change.steps
        assert Counter(map(name_of, standing)) == Counter(map(name_of, wanted.instances))
        return
    sizes = {name_of(i): i for i in wanted.instances}
    for step in found.change.steps:
        instance = Running(step.key, step.service, step.places)
        if step.action == "start":
            crowd = crowded(found.problem, Current(tuple(sizes.get(name_of(i), i) for i in standing)))
            standing.append(instance)
            assert crowded(found.problem, Current(tuple(sizes.get(name_of(i), i) for i in standing))) <= crowd
        else:
            at = next(k for k, i in enumerate(standing) if name_of(i) == name_of(instance))
            del standing[at]
    assert Counter(map(name_of, standing)) == Counter(map(name_of, wanted.instances))


def name_of(i: Running) -> object:
    return i.key, tuple(sorted((p.role, p.node) for p in i.places))


@SETTINGS
@given(worlds(), OPTIONS, st.lists(changes(), max_size=2))
def test_decisions_keep_their_promises_while_the_world_changes(
    world: Object, options: Options, happens: list[tuple[str, Any]]
) -> None:
    memo, current, before = Memo(), None, Current(())
    for number, change in enumerate((("same", 0), *happens)):
        world = changed(world, change)
        found = decided(world, options, current, memo)
        if found is None:
            assert decided(world, options, current) is None
            continue
        check_plan(found, before)
        if number == len(happens):
            without = decided(world, options, current)
            assert without is not None
            assert found.document == without.document
        current, before = found.document, current_of(found.document)
        check_rest(world, options, found, memo)


def check_rest(world: Object, options: Options, found: Decision, memo: Memo) -> None:
    """Where nothing changes a decision stands; one of a search that ended early, or that had to be made and so moved as
    little as it could, may be bettered, but not for ever."""
    for _ in range(4):
        again = decided(world, options, found.document, memo)
        assert again is not None
        if not again.change.steps:
            return
        forced = not (found.change.kept or found.change.why.startswith(("they ", "nothing ")))
        assert forced or not found.change.plan.feasible or found.change.plan.gap > EFFORT.gap
        found = again
    raise AssertionError("it never comes to rest")
