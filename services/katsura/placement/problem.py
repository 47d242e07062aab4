"""What is to be placed, and on what: the whole input of the planner, and nothing that is not in it decides anything.

`katsura.manifests.problem` makes one from custom resources and nodes; `planner.plan` solves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from katsura.placement.agents import AgentRuns
from katsura.placement.calibration import Calibration
from katsura.placement.card import ModelCard
from katsura.placement.catalogue import Device
from katsura.placement.cost import TERMS, Coefficients, ErrorClass, Load, Precision
from katsura.placement.operate import Slo

UNIFIED: Final = "Unified"
SPLIT: Final = "Split"
PAIR: Final = "PrefillDecode"
"""Prefill and decode on replicas of their own; planned only where it is asked for (`pairs`)."""
PIPELINE: Final = "Pipeline"
"""Cut by layers; planned where nothing else holds a model (`last_resort`) or where it is asked for (`pipelines`)."""
PLANNED_ONLY: Final = frozenset((PAIR, PIPELINE))
"""Topologies that no engine of ours runs."""
ANYWHERE: Final = "*"
"""Domain of a class that stands for all domains."""
_KNOWN_90: Final = 1.17
"""What nine of ten steps keep below once a service is known: `fit.SCATTER` at 90 %."""


class Objective(StrEnum):
    """What the planner makes as small (or, of throughput, as large) as it can."""

    COST = "cost"
    """Dollars per hour of the nodes that are used."""
    ENERGY = "energy"
    """Watts."""
    LATENCY = "latency"
    """Predicted seconds of one request of each model, added up; a dollar per hour weighs a tenth of a millisecond."""
    THROUGHPUT = "throughput"
    """The factor by which every demand could grow."""


@dataclass(frozen=True, slots=True)
class NodeClass:
    """Equal nodes of one domain.

    Attributes:
        device: accelerator, None on a CPU node; accelerators: of one node.
        core: its kind of core; cores, ram_bytes: of one node, free for us.
        domain: failure and network domain (rack or zone).
        hourly_usd, watts: of one node, full load; idle_watts: of one that is on.
        nodes: their names.
    """

    name: str
    device: Device | None
    accelerators: int
    core: Device
    cores: float
    ram_bytes: float
    domain: str
    spot: bool
    hourly_usd: float
    watts: float
    idle_watts: float
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ran:
    """A configuration that was run: `batch` requests at once on `units` accelerators or cores; mean between tokens."""

    device: str
    units: int
    batch: int
    itl_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """What decode steps of a service really took in processes of `units` accelerators, or cores, of one kind.

    Attributes:
        ratio: over what the device's coefficients say. quantile_90: factor over that which nine of ten kept below.
        basis: digest of what the ratio was taken to (`pace.basis_of`). samples, date: how many, and when.
    """

    device: str
    units: int
    ratio: float
    quantile_90: float
    basis: str
    samples: int
    date: str

    def applied(self, known: Coefficients) -> Coefficients:
        """`known` as this service meets it: decoding at its pace, prompts as before."""
        paced = {name: self.ratio * getattr(known, name) for name in TERMS if not name.startswith("prefill")}
        return replace(
            known,
            **paced,
            quantile_90=max(self.quantile_90, _KNOWN_90),
            error_class=ErrorClass.MEASURED,
            rows=self.samples,
            date=self.date,
        )


@dataclass(frozen=True, slots=True)
class Timed:
    """A row of a table of measured points: as `Ran`, with the tokens of each prompt and answer, and the engine with its
    version that ran it."""

    device: str
    units: int
    prompt: int
    output: int
    batch: int
    itl_s: float
    engine: str = ""


@dataclass(frozen=True, slots=True)
class ModelService:
    """A deployment.

    Attributes:
        requests_s: demand; 0 asks for one instance of any capacity.
        topologies: which of `UNIFIED`, `SPLIT`, `PAIR`, `PIPELINE` may be chosen.
        last_resort: which others, where none of these has any shape.
        ran: configurations of `UNIFIED` that were run: on their devices only those count, and as they ran.
        paces: what its running processes showed.
        timed: measured points of `UNIFIED`: on their devices only they, and what lies between them, count.
        replicas: fixed counts by role (`unified`, `attention`, `experts`); empty where the planner decides.
        devices: names it may use; empty: any.
        units: FFN units that members share (no more members than units).
        kv_bytes: limit of one shard's KV arena, None: what fits.
        domains_min: domains that must hold an instance.
        spot_share: part of the capacity that may be on spot nodes.
    """

    name: str
    card: ModelCard
    precision: Precision
    load: Load
    requests_s: float
    slo: Slo = field(default_factory=Slo)
    topologies: tuple[str, ...] = (UNIFIED, SPLIT)
    replicas: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    devices: tuple[str, ...] = ()
    units: int = 1024
    kv_bytes: int | None = None
    domains_min: int = 1
    spot_share: float = 0.0
    last_resort: tuple[str, ...] = ()
    ran: tuple[Ran, ...] = ()
    timed: tuple[Timed, ...] = ()
    paces: tuple[Pace, ...] = ()


@dataclass(frozen=True, slots=True)
class HelperService:
    """A CPU service (memory, router): each instance takes `cores` and `ram_bytes` and serves `capacity` requests/s.

    `follows`: parts of its demand by the model whose requests they are; what that does not serve is not asked of it.
    """

    name: str
    role: str
    requests_s: float
    capacity: float
    cores: float
    ram_bytes: float
    instances_min: int = 1
    domains_min: int = 1
    spot_share: float = 0.0
    follows: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


Service = ModelService | HelperService


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to search. Goldens stop on `gap` or `nodes`; a person's run also on `seconds`."""

    gap: float = 0.005
    nodes: int | None = None
    seconds: float | None = 10.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything that decides a plan.

    Attributes:
        quotas: most accelerators (or cores) in use, by device name.
        budget_usd: most dollars per hour.
        confidence: part of measured points that lay below the time an objective is checked against (0.5 or 0.9).
    """

    services: tuple[Service, ...]
    classes: tuple[NodeClass, ...]
    calibration: Calibration
    objective: Objective = Objective.COST
    quotas: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    budget_usd: float | None = None
    confidence: float = 0.9
    unknown: tuple[str, ...] = ()
    """Nodes whose accelerators nobody could name, with why."""
    agents: tuple[AgentRuns, ...] = ()
    """Runs whose calls are part of the services' demand."""
    paces: tuple[Pace, ...] = ()
    """Of the one service that it is looked at for (`of`)."""

    def of(self, service: ModelService) -> Problem:
        """This problem as `service` meets it: `known` heeds the paces that its processes showed."""
        return replace(self, paces=service.paces) if service.paces else self

    def known(self, device: Device, units: int) -> Coefficients:
        """Coefficients of a process on `units` of `device`."""
        told = self.calibration.of(device)
        pace = next((p for p in self.paces if (p.device, p.units) == (device.name, units)), None)
        return told if pace is None else pace.applied(told)
