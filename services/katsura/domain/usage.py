"""What a tenant's trees take, what they may take, and whom steps are charged to."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Usage:
    """Trees, nodes, stored bytes (records, opaque bytes, attachments and the versions of blocks that are kept, without
    indexes and token ids) and blocks."""

    trees: int = 0
    nodes: int = 0
    bytes: int = 0
    blocks: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.trees + other.trees,
            self.nodes + other.nodes,
            self.bytes + other.bytes,
            self.blocks + other.blocks,
        )


@dataclass(frozen=True, slots=True)
class Quotas:
    """Most of each that a tenant may have; 0 sets no limit."""

    trees: int = 0
    nodes: int = 0
    bytes: int = 0
    requests_per_minute: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """What one agent's steps took: counted when a step is first appended, never for copies. `micros` is money in
    millionths, as the steps told it."""

    steps: int = 0
    bytes: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    micros: int = 0

    def __add__(self, other: Charge) -> Charge:
        return Charge(
            self.steps + other.steps,
            self.bytes + other.bytes,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.micros + other.micros,
        )


@dataclass(frozen=True, slots=True)
class Counted:
    """Usage, and charges by agent; steps that name no agent and no cost are charged to nobody."""

    usage: Usage
    agents: dict[str, Charge] = field(default_factory=dict)

    def __add__(self, other: Counted) -> Counted:
        agents = dict(self.agents)
        for agent, charge in other.agents.items():
            agents[agent] = agents.get(agent, Charge()) + charge
        return Counted(self.usage + other.usage, agents)
