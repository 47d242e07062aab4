"""What the operator writes: the kinds that it owns, and the status of every kind.

People read these and scale a RolePool; nobody writes them by hand, so the reader of files does not know them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final

from katsura.manifests.conditions import Condition
from katsura.manifests.kinds import LocalRef
from katsura.manifests.rules import Rule

_Generation = Annotated[int | None, Rule("generation that this status speaks of", 0, 1 << 53)]
_Conditions = Annotated[tuple[Condition, ...], Rule("see docs/control-plane.md", maximum=16)]
_Count = Annotated[int, Rule("pods", 0, 100_000)]
_Text = Annotated[str, Rule("for people", 0, 2048)]


class PoolRole(StrEnum):
    """Role of a pool."""

    ATTENTION = "attention"
    EXPERTS = "experts"
    UNIFIED = "unified"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class RolePoolSpec:
    """The pods of one role of one deployment, or the routers of a namespace. Its count is demand to the planner."""

    role: PoolRole
    replicas: Annotated[int, Rule("instances that are asked for", 0, 256)] = 1
    deployment_ref: LocalRef | None = None
    group_size: Annotated[int, Rule("pods of one instance; more than one is reserved for a later version", 1, 1)] = 1


@dataclass(frozen=True, slots=True)
class RolePoolStatus:
    """What was granted and what runs."""

    observed_generation: _Generation = None
    replicas: _Count = 0
    ready_replicas: _Count = 0
    granted: Annotated[int, Rule("pods that the plan gives it", 0, 100_000)] = 0
    message: Annotated[str, Rule("why granted is what it is", 0, 2048)] = ""
    selector: Annotated[str, Rule("label selector of its pods", 0, 512)] = ""
    draining: Annotated[tuple[str, ...], Rule("pods that finish their work before they end", maximum=256)] = ()
    conditions: _Conditions = ()


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """One role of a deployment."""

    name: Annotated[str, Rule("role", 1, 63)]
    wanted: _Count = 0
    replicas: _Count = 0
    ready_replicas: _Count = 0


@dataclass(frozen=True, slots=True)
class PlanSlice:
    """What its plan promises this deployment."""

    name: Annotated[str, Rule("the PlacementPlan that gave it what it has; newer ones may give it the same", 1, 63)]
    hourly_usd: Annotated[float, Rule("dollars per hour of its share of nodes", 0, 1_000_000_000)] = 0.0
    itl_ms: Annotated[float | None, Rule("predicted milliseconds between tokens", 0, 1_000_000_000)] = None
    ttft_ms: Annotated[float | None, Rule("predicted milliseconds to the first token", 0, 1_000_000_000)] = None
    gap: Annotated[float | None, Rule("how far the plan may be from the best one", 0, 1)] = None


@dataclass(frozen=True, slots=True)
class MeasuredPace:
    """What decode steps of its running shards take on one kind of process, beside the prediction at the same load."""

    name: Annotated[str, Rule("device and how many of it, such as `H100 x2`; of a split `shard's + member's`", 1, 160)]
    ratio: Annotated[float, Rule("measured over predicted time of a step, the median", 0, 1_000_000)]
    time: Annotated[
        str,
        Rule(
            "when it was told: again only after it changed by a tenth",
            maximum=63,
            pattern=r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
        ),
    ]
    error90: Annotated[float, Rule("factor over the median that 90 % of the samples keep below", 0, 1_000_000)] = 1.0
    step_ms: Annotated[float, Rule("measured milliseconds of a step, the median", 0, 1_000_000_000)] = 0.0
    predicted_ms: Annotated[float, Rule("predicted for these loads, the median", 0, 1_000_000_000)] = 0.0
    batch: Annotated[float, Rule("sequences in a step of one shard, the median", 0, 1_000_000)] = 0.0
    context: Annotated[int, Rule("tokens that a sequence saw, the median", 0, 1_000_000_000)] = 0
    samples: Annotated[int, Rule("looks at shards behind it", 0, 1_000_000)] = 0
    counts: Annotated[bool, Rule("whether plans use it: measured near the planned load, on a whole replica")] = False
    basis: Annotated[str, Rule("digest of what the prediction rests on", 0, 63)] = ""


@dataclass(frozen=True, slots=True)
class ModelDeploymentStatus:
    """What is true of a deployment."""

    observed_generation: _Generation = None
    revision: Annotated[str, Rule("digest of weights, numerics and layout", 0, 63)] = ""
    roles: Annotated[tuple[RoleStatus, ...], Rule("by role", maximum=8)] = ()
    plan: PlanSlice | None = None
    measured: Annotated[tuple[MeasuredPace, ...], Rule("beside what plan predicts", maximum=8)] = ()
    conditions: _Conditions = ()


_MOST: Final = 1_000_000
"""No factor and no number of seconds of a step comes near it."""
_Number = Annotated[float, Rule("", 0, 1_000_000_000)]


@dataclass(frozen=True, slots=True)
class CoefficientsStatus:
    """What the parts of a step really cost: factors over what the profile's figures promise, or seconds each."""

    weights: Annotated[float, Rule("factor on the time in which weights are read", 0, _MOST)]
    kv: Annotated[float, Rule("factor on the time in which KV is read", 0, _MOST)]
    flops: Annotated[float, Rule("factor on the time of arithmetic", 0, _MOST)]
    collective: Annotated[float, Rule("factor on the time between devices of one replica", 0, _MOST)]
    layers: Annotated[float, Rule("seconds of each layer", 0, _MOST)]
    linked_layers: Annotated[float, Rule("seconds more of each layer that is cut over devices", 0, _MOST)]
    moe_layers: Annotated[float, Rule("seconds more of each layer with routed experts", 0, _MOST)]
    sequences: Annotated[float, Rule("seconds of each running sequence", 0, _MOST)]
    prefill: Annotated[float, Rule("factor on the time of prompts that are computed between steps", 0, _MOST)]
    prefill_collective: Annotated[float, Rule("factor on the time of prompts between devices", 0, _MOST)]
    first: Annotated[
        tuple[_Number, ...],
        Rule("to the first token: seconds, then factors on the prompt, a step, a batch's prompts", 0, 4, repeats=True),
    ]
    first_collective: Annotated[
        tuple[_Number, ...],
        Rule("factors on what a prompt, and a batch's prompts, send between devices", 0, 2, repeats=True),
    ]
    batch_range: Annotated[
        tuple[_Number, ...], Rule("smallest and largest batch that was measured", 0, 2, repeats=True)
    ]
    context_range: Annotated[
        tuple[_Number, ...], Rule("shortest and longest context that was measured, in tokens", 0, 2, repeats=True)
    ]


@dataclass(frozen=True, slots=True)
class CalibrationStatus:
    """What plans believe of an accelerator whose times were measured."""

    error_class: Annotated[str, Rule("`measured` on our engine or `calibrated` on others'", 0, 63)]
    rows: Annotated[int, Rule("measurements behind it", 0, 100_000_000)] = 0
    date: Annotated[str, Rule("when it was made", 0, 63)] = ""
    error90: Annotated[float, Rule("time over prediction that 90 % of the measurements keep below", 0, 1000)] = 0.0
    coefficients: Annotated[
        CoefficientsStatus | None, Rule("those of class `measured` outlive the file that brought them")
    ] = None


@dataclass(frozen=True, slots=True)
class AcceleratorProfileStatus:
    """Where an accelerator was found."""

    observed_generation: _Generation = None
    nodes: Annotated[int, Rule("nodes that have it", 0, 1_000_000)] = 0
    total: Annotated[int, Rule("accelerators, or cores, on them", 0, 100_000_000)] = 0
    calibration: Annotated[CalibrationStatus | None, Rule("absent: estimated from data sheets")] = None
    conditions: _Conditions = ()


@dataclass(frozen=True, slots=True)
class MemoryStoreStatus:
    """What is true of a store's memory processes."""

    observed_generation: _Generation = None
    endpoint: Annotated[str, Rule("gRPC address", 0, 512)] = ""
    replicas: _Count = 0
    ready_replicas: _Count = 0
    conditions: _Conditions = ()


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Whether what an agent names is there."""

    observed_generation: _Generation = None
    conditions: _Conditions = ()
