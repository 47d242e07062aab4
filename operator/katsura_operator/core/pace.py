"""What decode steps of running shards take, beside what the plan predicts: `ModelDeployment.status.measured`.

    samples of ready shards (`survey`) -> ratio to the prediction at the same batch and context -> median, and its error

An entry is written again only where it says something new: it costs a write, and a plan where plans count it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median
from typing import Any, Final

from katsura.placement.pace import basis_of, predicted_step_s, unit_of
from katsura.placement.plan import Place
from katsura.placement.problem import ModelService, NodeClass, Pace, Problem
from katsura_operator.core.objects import (
    DEPLOYMENT,
    REVISION,
    ROLE,
    Object,
    is_ending,
    is_true,
    labels_of,
    moment,
    namespace_of,
)
from katsura_operator.core.plans import bounded, listed
from katsura_operator.core.snapshot import Sample, Snapshot

STEPS_MIN: Final = 50
"""Decode steps that make a sample."""
SAMPLES_MIN: Final = 5
"""Fewer say nothing yet."""
CHANGE: Final = 0.1
"""Part by which a ratio changes before it is told again."""
REST_S: Final = 300.0
"""Between two tellings of one ratio."""
_LOADED: Final = 4.0
"""How far above a measured batch the planned one may be for the ratio to count: as far as the cost model answers beyond
what it saw (`cost.Coefficients`)."""
_ENTRIES_MAX: Final = 8
_RATIO_MAX, _NUMBER_MAX = 1e6, 1e9
_STEP_MAX_S, _BATCH_MAX, _CONTEXT_MAX = 1e5, 1e5, 1e8
_LEADS: Final = ("attention", "unified")


@dataclass(frozen=True, slots=True)
class Shard:
    """A pod that leads generations, and can be asked."""

    uid: str
    host: str
    node: str
    deployment: str
    revision: str
    accelerators: int
    cores: float


@dataclass(frozen=True, slots=True)
class Count:
    """Sums over the decode steps of one life of a shard (`DecodeCount` of its API)."""

    incarnation: int
    steps: int
    seconds: float
    sequences: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class _Make:
    """An instance of a plan, as far as its decode steps are predicted by it.

    `units`: device and count of a process that leads, and of a member. `rest`: processes that do not lead.
    `leads`: nodes of those that do.
    """

    units: tuple[tuple[str, int], ...]
    rest: tuple[tuple[str, str, int, float], ...]
    micro: int
    places: tuple[Place, ...]
    leads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Compared:
    """A sample and its prediction. `near`: its load is near enough to the planned one."""

    sample: Sample
    predicted_s: float
    near: bool


def shards_of(pods: Iterable[Object]) -> tuple[Shard, ...]:
    """Ready pods that lead generations, by uid."""
    made = []
    for pod in pods:
        labels, host = labels_of(pod), (pod.get("status") or {}).get("podIP")
        leads = labels.get(ROLE) in _LEADS and DEPLOYMENT in labels
        if leads and host and is_true(pod, "Ready") and not is_ending(pod):
            spec, name = pod.get("spec") or {}, f"{namespace_of(pod)}/{labels[DEPLOYMENT]}"
            uid, revision = str(pod["metadata"]["uid"]), labels.get(REVISION, "")
            made.append(Shard(uid, str(host), str(spec.get("nodeName", "")), name, revision, *_size(spec)))
    return tuple(sorted(made, key=lambda s: s.uid))


def _size(spec: Mapping[str, Any]) -> tuple[int, float]:
    """Accelerators and cores that a pod requests."""
    ours: Mapping[str, Any] = next(iter(spec.get("containers") or ()), {})
    asked: Mapping[str, Any] = (ours.get("resources") or {}).get("requests") or {}
    cpu = str(asked.get("cpu", "0"))
    devices = [int(count) for name, count in asked.items() if "/" in name and str(count).isdigit()]
    return sum(devices), float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def sample_of(shard: Shard, before: Count, now: Count) -> Sample | None:
    """What its steps were between two looks; None where it is another life, or did hardly anything."""
    steps, sequences = now.steps - before.steps, now.sequences - before.sequences
    seconds, seen = now.seconds - before.seconds, now.context_tokens - before.context_tokens
    if before.incarnation != now.incarnation or steps < STEPS_MIN or sequences < steps or seconds <= 0:
        return None
    size = (shard.accelerators, shard.cores)
    where = (shard.deployment, shard.revision, shard.node, *size)
    return Sample(*where, step_s=seconds / steps, batch=sequences / steps, context=seen / sequences)


def measured(
    obj: Object,
    name: str,
    revision: str,
    plan: Mapping[str, Any],
    problem: Problem,
    seen: Snapshot,
    *,
    overcommit: float,
) -> list[dict[str, Any]]:
    """`status.measured` of the ModelDeployment `obj`, which `plan` calls `name`.

    Args:
        overcommit: planned cores per core: above 1 predictions are of cores that nobody has, and count for nothing.
    """
    service = next((s for s in problem.services if s.name == name and isinstance(s, ModelService)), None)
    if service is None:
        return []
    entries: dict[str, dict[str, Any]] = {}
    for old in readable(obj)[:_ENTRIES_MAX]:
        devices = [part.rpartition(" x")[0] for part in str(old["name"]).split(" + ")]
        if old.get("basis") == basis_of(problem, service, devices):
            entries[str(old["name"])] = dict(old)
    mine = [s for s in seen.samples if s.deployment == name and s.revision == revision and _is_sane(s)]
    if len(mine) < SAMPLES_MIN:
        return list(entries.values())
    makes, planned = tuple(_makes(plan, name, problem)), _planned_batch(plan, name)
    compared: dict[tuple[tuple[str, int], ...], list[_Compared]] = defaultdict(list)
    for sample in mine:
        make = _make_of(sample, makes, overcommit)
        if make is None:
            continue
        predicted = predicted_step_s(problem, service, make.places, make.micro, sample.batch, sample.context)
        near = sample.batch * len(make.leads) * _LOADED >= planned
        if predicted and bounded(sample.step_s / predicted, _RATIO_MAX):
            compared[make.units].append(_Compared(sample, predicted, near))
    for units, found in sorted(compared.items()):
        near_ones = [c for c in found if c.near]
        told = overcommit == 1.0 and len(units) == 1 and len(near_ones) >= SAMPLES_MIN
        key, basis = " + ".join(f"{d} x{n}" for d, n in units), basis_of(problem, service, [d for d, _ in units])
        entry = _summary(near_ones if told else found)
        entry |= {"name": key, "time": seen.now, "counts": told, "basis": basis}
        before = entries.get(key)
        if len(entries) < _ENTRIES_MAX if before is None else _is_news(entry, before):
            entries[key] = entry
    return [entries[key] for key in sorted(entries)]


def readable(obj: Object) -> list[Mapping[str, Any]]:
    """Entries of its `status.measured`; those that another version or another hand left unreadable say nothing."""
    return [
        e
        for e in listed(obj, "measured", "name", "ratio", "error90", "basis", "samples", "time")
        if moment(e["time"]) and all(isinstance(e[key], str) for key in ("name", "basis", "time"))
        if all(bounded(e[key], _RATIO_MAX) for key in ("ratio", "error90")) and isinstance(e["samples"], int)
        if all(v == bounded(v, _NUMBER_MAX) for v in e.values() if type(v) in (int, float))
    ]


def counted(obj: Object) -> tuple[Pace, ...]:
    """What plans shall use of a ModelDeployment's `status.measured`."""
    made = []
    for e in readable(obj):
        device, _, units = e["name"].rpartition(" x")
        if e.get("counts") and units.isdigit():
            known = (float(e["ratio"]), float(e["error90"]), e["basis"], e["samples"], e["time"][:10])
            made.append(Pace(device, int(units), *known))
    return tuple(made)


def _is_sane(sample: Sample) -> bool:
    """Whether a shard can have shown it: counts of one that is out of its mind say nothing."""
    limits = ((sample.step_s, _STEP_MAX_S), (sample.batch, _BATCH_MAX), (sample.context, _CONTEXT_MAX))
    return all(bounded(value, most) for value, most in limits) and bounded(sample.cores, _BATCH_MAX) is not None


def _summary(found: Sequence[_Compared]) -> dict[str, Any]:
    ratios = sorted(c.sample.step_s / c.predicted_s for c in found)
    middle = median(ratios)
    return {
        "ratio": float(f"{middle:.4g}"),
        "error90": round(ratios[ceil(0.9 * len(ratios)) - 1] / middle, 3),
        "stepMs": round(median(c.sample.step_s for c in found) * 1e3, 3),
        "predictedMs": round(median(c.predicted_s for c in found) * 1e3, 3),
        "batch": round(median(c.sample.batch for c in found), 1),
        "context": round(median(c.sample.context for c in found)),
        "samples": len(found),
    }


def _is_news(entry: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether it is worth a write, and a plan: what counts is not replaced by what does not."""
    before, today = moment(old["time"]), moment(entry["time"])
    since_s = (today - before).total_seconds() if before and today else REST_S
    if 0 <= since_s < REST_S or (old.get("counts") and not entry["counts"]):
        return False
    apart = abs(entry["ratio"] - old["ratio"]) > CHANGE * old["ratio"]
    return apart or bool(entry["counts"] and not old.get("counts"))


def _makes(plan: Mapping[str, Any], name: str, problem: Problem) -> Iterator[_Make]:
    """What the plan gives a deployment, whose units are slices of nodes as they are today."""
    classes = {c.name: c for c in problem.classes}
    for entry in plan["status"]["assignments"]:
        for instance in entry["instances"] if entry["service"] == name else ():
            places = tuple(
                Place(p["role"], p["nodeClass"], p["node"], p["accelerators"], p["cores"], p["memoryBytes"])
                for p in instance["places"]
            )
            if all(unit_of(p, classes) is not None for p in places):
                yield _make(places, int(bounded(entry.get("microBatches"), _BATCH_MAX) or 1), classes)


def _make(places: tuple[Place, ...], micro: int, classes: Mapping[str, NodeClass]) -> _Make:
    units = {p.role: (u.device.name, u.count) for p in places if (u := unit_of(p, classes)) is not None}
    leads = tuple(p.node for p in places if p.role in _LEADS)
    rest = tuple((p.role, p.node_class, p.accelerators, p.cores) for p in places if p.role not in _LEADS)
    return _Make(tuple(units[role] for role in sorted(units)), rest, micro, places, leads)


def _make_of(sample: Sample, makes: Sequence[_Make], overcommit: float) -> _Make | None:
    """What the sampled shard is part of: by its node where the plan names nodes, else where all instances are alike.

    With the size of its own pod: pods of one pool are as large as the plan's largest.
    """
    there = [m for m in makes if sample.node in m.leads] or makes
    if len({(tuple(d for d, _ in m.units), m.rest, m.micro, len(m.leads)) for m in there}) != 1:
        return None
    make, lead = there[0], next(p for p in there[0].places if p.role in _LEADS)
    own = sample.accelerators if lead.accelerators else round(sample.cores * overcommit)
    size = {"accelerators": own} if lead.accelerators else {"cores": float(own)}
    places = tuple(replace(p, **size) if p.role in _LEADS else p for p in make.places)
    return replace(make, places=places, units=((make.units[0][0], own), *make.units[1:]))


def _planned_batch(plan: Mapping[str, Any], name: str) -> float:
    point = next((s.get("point") for s in listed(plan, "services", "name") if s["name"] == name), None) or {}
    return bounded(point.get("batch"), _BATCH_MAX) or 0.0
