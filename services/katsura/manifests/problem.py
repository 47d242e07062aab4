"""Custom resources and nodes as the planner's problem: the only place where the two meet.

`katsura plan` (and the operator) call `build_problem`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError
from katsura.domain.shape import DType
from katsura.domain.units import GIB
from katsura.manifests.bundle import Bundle
from katsura.manifests.cluster import Cluster, ClusterNode
from katsura.manifests.demand import Demand, agent_runs, demands, memory_rates
from katsura.manifests.kinds import AcceleratorProfile, Inventory, ModelDeployment, Topology
from katsura.manifests.reader import suggestion
from katsura.placement.calibration import Calibration
from katsura.placement.card import read_card
from katsura.placement.catalogue import Catalogue, Device
from katsura.placement.cost import BF16, F32
from katsura.placement.operate import Slo
from katsura.placement.problem import (
    PAIR,
    PIPELINE,
    SPLIT,
    UNIFIED,
    HelperService,
    ModelService,
    NodeClass,
    Objective,
    Problem,
    Service,
)

_TOPOLOGY = {Topology.SPLIT: SPLIT, Topology.UNIFIED: UNIFIED}
_HELPER_LOAD = 0.6
"""Part of a core that a helper is planned to use."""
_MEMORY_OPS = 3
"""Calls to the memory service per request: assemble, grow the question, grow the answer."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of a plan adds to its files."""

    objective: Objective = Objective.COST
    budget_usd: float | None = None
    confidence: float = 0.9
    helpers: bool = True
    pairs: bool = False
    """Whether prefill and decode may get replicas of their own, although no engine of ours runs them yet."""
    pipelines: bool | None = False
    """Whether models may be cut by layers over nodes, although no engine of ours runs that; None: those that fit in no
    other way."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A profile read over the catalogue. `price` is per accelerator or core."""

    device: Device
    selector: Mapping[str, str] = field(default_factory=dict)
    resource: str | None = None


def check_devices(cluster: Cluster, catalogue: Catalogue) -> None:
    """Refuse deployments that name a device which neither `catalogue` nor a profile knows: a slip of the pen, mostly.

    Raises:
        InvalidArgumentError: with file, line and field.
    """
    ours = {name.lower() for name in catalogue.devices}
    said = (p.spec.device or p.metadata.name for p in cluster.bundle.profiles)
    known = {*catalogue.devices, *(name for name in said if name.lower() not in ours)}
    for deployment in cluster.bundle.deployments:
        for name in deployment.spec.placement.devices:
            if name not in known:
                where = cluster.where("ModelDeployment", deployment.metadata.name, "spec.placement.devices")
                what = f"no device {name!r}{suggestion(name, known)}"
                raise InvalidArgumentError(where + what, field="spec.placement.devices")


def build_problem(
    cluster: Cluster,
    configs: Mapping[str, Mapping[str, Any]],
    catalogue: Catalogue,
    calibration: Calibration,
    options: Options | None = None,
) -> Problem:
    """The problem that `cluster` states.

    Args:
        configs: parsed `config.json` of each deployment's model, by deployment name.

    Raises:
        FailedPreconditionError: no deployment, or no node that may be used.
    """
    options = options or Options()
    bundle = cluster.bundle
    if not bundle.deployments:
        raise FailedPreconditionError("there is nothing to place; name a file with a ModelDeployment (-f)")
    kinds = {p.metadata.name: _kind(p, catalogue, cluster) for p in bundle.profiles}
    for kind in kinds.values():
        catalogue = catalogue.with_device(kind.device)
    unknown = list(cluster.left_out)
    classes = _named_apart(
        [
            *_observed(cluster.nodes, kinds, catalogue, unknown),
            *(c for p in bundle.profiles for c in _declared(p, kinds[p.metadata.name].device, catalogue)),
        ]
    )
    if not classes:
        why = "; ".join(unknown) or "the files hold no Node and no AcceleratorProfile with an inventory"
        raise FailedPreconditionError(f"there is no node to place anything on: {why}")
    quotas = {
        kinds[p.metadata.name].device.name: float(p.spec.quota) for p in bundle.profiles if p.spec.quota is not None
    }
    asked = demands(bundle)
    models = [_model(d, configs[d.metadata.name], asked[d.metadata.name], options) for d in bundle.deployments]
    helpers = _helpers(bundle, asked, calibration) if options.helpers else []
    return Problem(
        services=(*models, *helpers),
        classes=tuple(sorted(classes, key=lambda c: c.name)),
        calibration=calibration,
        objective=options.objective,
        quotas=MappingProxyType(quotas),
        budget_usd=options.budget_usd,
        confidence=options.confidence,
        unknown=tuple(unknown),
        agents=agent_runs(bundle),
    )


def _named_apart(classes: Sequence[NodeClass]) -> list[NodeClass]:
    """Classes of one name that differ otherwise (in price, cores or memory) get numbers."""
    taken: Counter[str] = Counter(c.name for c in classes)
    seen: Counter[str] = Counter()
    made = []
    for c in classes:
        seen[c.name] += 1
        made.append(replace(c, name=f"{c.name}#{seen[c.name]}") if taken[c.name] > 1 else c)
    return made


def _model(deployment: ModelDeployment, config: Mapping[str, Any], asked: Demand, options: Options) -> ModelService:
    spec = deployment.spec
    precision = BF16 if spec.dtype is DType.BF16 else F32
    roles = {role: getattr(spec.roles, role) for role in ("unified", "attention", "experts")}
    milliseconds = (spec.slo.itl_ms, spec.slo.ttft_ms)
    return ModelService(
        name=deployment.metadata.name,
        card=read_card(config, deployment.metadata.name),
        precision=precision,
        load=asked.load,
        requests_s=asked.requests_s,
        slo=Slo(*(None if ms is None else ms / 1e3 for ms in milliseconds)),
        topologies=(
            *(_TOPOLOGY[t] for t in spec.placement.topologies or (spec.topology,)),
            *((PAIR,) if options.pairs else ()),
            *((PIPELINE,) if options.pipelines else ()),
        ),
        replicas=MappingProxyType({r: said.replicas for r, said in roles.items() if said and said.replicas}),
        devices=tuple(sorted(spec.placement.devices)),
        units=spec.ffn.groups,
        kv_bytes=spec.kv.bytes,
        domains_min=spec.placement.min_domains,
        spot_share=spec.placement.spot_share,
        last_resort=(PIPELINE,) if options.pipelines is None else (),
    )


def _helpers(bundle: Bundle, asked: Mapping[str, Demand], calibration: Calibration) -> list[Service]:
    cost, rates = calibration.helpers, memory_rates(bundle)
    total = sum(d.requests_s for d in asked.values())
    spread = max((d.spec.placement.min_domains for d in bundle.deployments), default=1)
    made: list[Service] = []
    for deployment in bundle.deployments:
        made.append(
            HelperService(
                name=_helper_name(deployment.metadata.name, "router", asked),
                role="router",
                requests_s=asked[deployment.metadata.name].requests_s,
                capacity=_HELPER_LOAD / cost["router_cpu_s"],
                cores=1.0,
                ram_bytes=cost["router_ram_bytes"],
                instances_min=deployment.spec.replicas_of("router"),
                domains_min=min(deployment.spec.placement.min_domains, deployment.spec.replicas_of("router")),
                follows=MappingProxyType({deployment.metadata.name: 1.0}),
            )
        )
    for store in bundle.memory_stores:
        made.append(
            HelperService(
                name=_helper_name(store.metadata.name, "memory", asked),
                role="memory",
                requests_s=rates[store.metadata.name],
                capacity=_HELPER_LOAD / cost["memory_cpu_s"] / _MEMORY_OPS,
                cores=1.0,
                ram_bytes=cost["memory_ram_bytes"],
                instances_min=store.spec.replicas,
                domains_min=min(spread, store.spec.replicas),  # no model outlives its memory
                follows=MappingProxyType({n: d.requests_s / total for n, d in asked.items() if d.requests_s}),
            )
        )
    return made


def _helper_name(owner: str, role: str, models: Mapping[str, Demand]) -> str:
    """What a helper is called in plans: a model of somebody's may have its name, but none has a colon."""
    return f"{owner}:{role}" if f"{owner}-{role}" in models else f"{owner}-{role}"


def _kind(profile: AcceleratorProfile, catalogue: Catalogue, cluster: Cluster) -> _Kind:
    spec = profile.spec
    name = catalogue.spelled(spec.device or profile.metadata.name)
    device = catalogue.devices.get(name) or _own_device(profile, name, cluster)
    can = spec.capabilities
    said: dict[str, Any] = {
        "memory_gib": can.memory_gib,
        "memory_gb_s": can.memory_gb_per_second,
        "intra_gb_s": can.intra_gb_per_second,
        "inter_gb_s": can.inter_gb_per_second,
        "watts": can.watts,
        "teraflops": None if can.bf16_teraflops is None else {**device.teraflops, "bf16": can.bf16_teraflops},
        "hourly_usd": spec.cost.per_hour if spec.cost else None,
        "spot_usd": spec.cost.spot_per_hour if spec.cost else None,
    }
    made = replace(device, name=name, **{key: value for key, value in said.items() if value is not None})
    return _Kind(made, spec.node_selector, spec.resource)


def _own_device(profile: AcceleratorProfile, name: str, cluster: Cluster) -> Device:
    """A device that only its profile knows. Raises FailedPreconditionError where too little is said."""
    can = profile.spec.capabilities
    needed = {"bf16Teraflops": can.bf16_teraflops, "memoryGbPerSecond": can.memory_gb_per_second}
    missing = [key for key, value in needed.items() if not value]
    if missing:
        path = "spec.device" if profile.spec.device else "spec.capabilities"
        where = cluster.where("AcceleratorProfile", profile.metadata.name, path)
        raise FailedPreconditionError(
            f"{where}{name!r} is not in the catalogue and its "
            f"capabilities lack {', '.join(missing)}; say them, or name a catalogue device in spec.device",
            field=path,
        )
    return Device(
        name=name,
        kind="gpu" if can.memory_gib else "cpu",
        vendor="",
        teraflops={"bf16": can.bf16_teraflops or 0.0},
        memory_gib=can.memory_gib or 0.0,
        memory_gb_s=can.memory_gb_per_second or 0.0,
        intra_gb_s=can.intra_gb_per_second or 10.0,
        inter_gb_s=can.inter_gb_per_second or 1.0,
        watts=can.watts or 0.0,
        idle_watts=0.15 * (can.watts or 0.0),
        hourly_usd=None,
        spot_usd=None,
        hourly_range=None,
        resource="",
        labels=(),
        pci=(),
        source=f"AcceleratorProfile {name}",
        date="",
    )


def _declared(profile: AcceleratorProfile, device: Device, catalogue: Catalogue) -> list[NodeClass]:
    made = []
    numbered: Counter[str] = Counter()
    for entry in profile.spec.inventory:
        cores = float(entry.per_node if device.is_cpu else entry.cores)
        core = device if device.is_cpu else catalogue.named("cpu")
        label = _label(device, entry.per_node, entry.domain, entry.spot)
        first = numbered[entry.domain]
        numbered[entry.domain] += entry.nodes
        names = tuple(f"{profile.metadata.name}-{entry.domain}-{i:04}" for i in range(first, first + entry.nodes))
        made.append(_class(label, None if device.is_cpu else device, core, cores, entry, names))
    return made


def _observed(
    nodes: Sequence[ClusterNode], kinds: Mapping[str, _Kind], catalogue: Catalogue, unknown: list[str]
) -> list[NodeClass]:
    grouped: dict[str, tuple[Device | None, Device, ClusterNode, int, list[str]]] = {}
    for node in nodes:
        device, count, core = _identify(node, kinds, catalogue, unknown)
        if device is not None and device.hourly_usd is None:
            unknown.append(f"{node.name}: no price of {device.name} is known; add an AcceleratorProfile with cost")
            device, count = None, 0
        memory = node.memory_bytes // GIB
        base = _label(device or core, count or int(node.cores), node.domain, node.spot)
        key = f"{base}/{node.cores:g}c{memory}g"
        grouped.setdefault(key, (device, core, node, count, []))[-1].append(node.name)
    plain = [key.rsplit("/", 1)[0] for key in grouped]
    made = []
    for key, (device, core, node, count, names) in grouped.items():
        short = key.rsplit("/", 1)[0]
        entry = Inventory(len(names), count or int(node.cores), 1, node.memory_bytes, node.domain, node.spot)
        label = short if plain.count(short) == 1 else key
        made.append(_class(label, device, core, node.cores, entry, tuple(sorted(names))))
    return made


def _identify(
    node: ClusterNode, kinds: Mapping[str, _Kind], catalogue: Catalogue, unknown: list[str]
) -> tuple[Device | None, int, Device]:
    """Accelerator, count and core of a node; a profile that selects it has the first word."""
    core = catalogue.cpu(node.labels)
    for kind in kinds.values():
        if kind.selector and kind.selector.items() <= dict(node.labels).items():
            if kind.device.is_cpu:
                core = kind.device
                continue
            resource = kind.resource or kind.device.resource
            count = node.resources.get(resource, 0) or len(node.products)
            if count:
                return kind.device, count, core
    found = catalogue.identify(node.labels, node.resources, node.products)
    if found is None:
        return None, 0, core
    if found.device is None:
        unknown.append(f"{node.name}: {found.why}; its cores are used, its accelerators are not")
        return None, 0, core
    return found.device, found.count, core


def _label(device: Device, count: int, domain: str, spot: bool) -> str:
    return f"{device.name}x{count}/{domain}{'/spot' if spot else ''}"


def _class(
    label: str, device: Device | None, core: Device, cores: float, entry: Inventory, names: tuple[str, ...]
) -> NodeClass:
    priced, units = (device, float(entry.per_node)) if device is not None else (core, cores)
    price = (priced.spot_usd if entry.spot else None) or priced.hourly_usd or 0.0
    return NodeClass(
        name=label,
        device=device,
        accelerators=entry.per_node if device is not None else 0,
        core=core,
        cores=cores,
        ram_bytes=float(entry.memory),
        domain=entry.domain,
        spot=entry.spot,
        hourly_usd=price * units,
        watts=priced.watts * units,
        idle_watts=priced.idle_watts * units,
        nodes=names,
    )
