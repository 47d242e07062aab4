"""What running processes say of themselves: revisions and leased records.

A shard, a member or a router puts its record into the hints store and refreshes it with every heartbeat; a record that
is not refreshed in time is gone, and so, to everybody else, is its process. The router reads them; nobody else finds
a process by any other way.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.shape import DType, FfnLayout, Numerics

NO_EPOCH = Epoch(0)
"""Before the first table."""


def revision_id(weights_digest: bytes, dtype: DType, numerics: Numerics, layout: FfnLayout, wire_version: int) -> str:
    """Name of a revision, 16 hexadecimal digits: shards and members that compute the same one may work together.

    Args:
        weights_digest: SHA-256 over the weights' manifest.
        dtype: storage type of the weights.
        numerics: arithmetic that the revision promises.
        layout: how every FFN layer is cut.
        wire_version: version of the data plane's frame.
    """
    h = blake2b(digest_size=8, person=b"katsura-revision")
    for part in (weights_digest, dtype.value.encode(), numerics.value.encode()):
        h.update(struct.pack("<I", len(part)) + part)
    h.update(struct.pack("<III", layout.unit_count, layout.group_count, wire_version))
    return h.hexdigest()


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of a deployment; a sequence never changes it.

    Attributes:
        deployment: name of the deployment.
        revision_id: from `revision_id`.
        weights_digest: SHA-256 over the weights' manifest, 32 bytes.
        numerics: arithmetic that it promises; dtype: storage type of weights and pages.
        page_tokens: slots of a KV page; context_tokens: prompt and answer together.
        tokenizer_digest: hexadecimal digest of tokenizer and chat template.
    """

    deployment: DeploymentName
    revision_id: str
    weights_digest: bytes
    numerics: Numerics
    dtype: DType
    page_tokens: int
    context_tokens: int
    tokenizer_digest: str


@dataclass(frozen=True, slots=True)
class ShardLoad:
    """What a shard carries.

    Attributes:
        running: sequences in the batch; waiting: sequences not admitted yet.
        waiting_tokens: prompt tokens still to prefill, of waiting and of running sequences.
        free_pages: pages that no running sequence holds (cached ones included); page_count: pages of the arena.
        step_ms: smoothed milliseconds of a decode step; prefill_tokens_per_s: smoothed rate. 0 where not measured yet.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    free_pages: int = 0
    page_count: int = 0
    step_ms: float = 0.0
    prefill_tokens_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ShardLease:
    """An attention shard (or a unified engine).

    Attributes:
        instance_id: the process; incarnation: its life; start_ms: wall clock of that life's start, a later life wins.
        revision: what it serves; aliases: other names of the deployment; model_path: folder of tokenizer and template.
        address: where its gRPC service answers.
        ready: whether it takes new sequences; not_ready_reason: why not, for a person.
        load: see `ShardLoad`; epoch: expert table in use, 0 for a unified engine.
        draining: new sequences are refused.
        put_ms: the store's clock when it took this record; set by the store, ignored on a put.
    """

    instance_id: InstanceId
    incarnation: Incarnation
    start_ms: int
    revision: Revision
    aliases: tuple[str, ...]
    model_path: str
    address: str
    ready: bool
    not_ready_reason: str = ""
    load: ShardLoad = ShardLoad()
    epoch: Epoch = NO_EPOCH
    draining: bool = False
    put_ms: int = 0


@dataclass(frozen=True, slots=True)
class GroupRange:
    """The reduction groups `groups` (ascending) in the layers `[layer_start, layer_end)`."""

    layer_start: int
    layer_end: int
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.layer_start < self.layer_end or list(self.groups) != sorted(set(self.groups)):
            raise InvalidArgumentError(
                f"layers [{self.layer_start}, {self.layer_end}) and groups {self.groups} are not a range: layers must "
                "not be empty, groups must ascend",
                field="groups",
            )

    def covers(self, layer: int, group: int) -> bool:
        """Whether (layer, group) is in it."""
        return self.layer_start <= layer < self.layer_end and group in self.groups


@dataclass(frozen=True, slots=True)
class MemberLease:
    """A member of an expert pool.

    Attributes:
        instance_id: the process; incarnation: its life; start_ms: wall clock of that life's start, a later life wins.
        deployment: what it works for; revision_id: of which revision; numerics: what that promises.
        layer_count: layers of the model; layout: how each is cut; group_bytes: bytes of one group of one layer.
        address: where its gRPC service answers; data_endpoints: `shm:<path>` or `tcp:<host>:<port>`, best first.
        capacity_bytes: bytes that weights may take; loaded_bytes: that they take; loaded: what answers frames.
        unit_cost_s: measured seconds per activated unit and frame; token_cost_s: per (token, unit). 0 where unknown.
        fingerprint: hexadecimal digest of canary outputs for every tile shape. It names weights and kernels, never the
            groups that happen to be loaded: members with equal fingerprints may stand in for each other.
        prepared_epoch: newest table whose groups for this member are all loaded; serving_epoch: committed table in use.
        draining: new frames are refused.
        put_ms: the store's clock when it took this record; set by the store, ignored on a put.
    """

    instance_id: InstanceId
    incarnation: Incarnation
    start_ms: int
    deployment: DeploymentName
    revision_id: str
    numerics: Numerics
    layer_count: int
    layout: FfnLayout
    group_bytes: int
    address: str
    data_endpoints: tuple[str, ...]
    capacity_bytes: int
    fingerprint: str
    loaded_bytes: int = 0
    loaded: tuple[GroupRange, ...] = ()
    unit_cost_s: float = 0.0
    token_cost_s: float = 0.0
    prepared_epoch: Epoch = NO_EPOCH
    serving_epoch: Epoch = NO_EPOCH
    draining: bool = False
    put_ms: int = 0


@dataclass(frozen=True, slots=True)
class RouterLease:
    """A router replica.

    Attributes:
        instance_id: the process; incarnation: its life; start_ms: wall clock of that life's start, a later life wins.
        address: where its gRPC service answers.
        draining: new decisions are refused.
        put_ms: the store's clock when it took this record; set by the store, ignored on a put.
    """

    instance_id: InstanceId
    incarnation: Incarnation
    start_ms: int
    address: str
    draining: bool = False
    put_ms: int = 0
