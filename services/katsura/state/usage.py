"""What tenants' trees take, beside what they may take.

Each tree counts itself, exactly, in the call that writes (memory_b_usage.lua). Sums over a tenant's trees are hints:
processes add what they wrote about once a second, and `recount` reads every tree and puts the sums right. What expires
or dies with a process shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from katsura.domain.ids import TenantId
from katsura.domain.usage import Charge, Counted, Quotas, Usage

_FIELDS: Final = {
    "steps": "steps",
    "bytes": "bytes",
    "prompt": "prompt_tokens",
    "cached": "cached_tokens",
    "completion": "completion_tokens",
    "micros": "micros",
}
Count = Callable[[TenantId, Usage], None]
"""Is told what each commit added to what a tenant takes."""


def uncounted(tenant: TenantId, added: Usage) -> None:
    """Where nobody keeps sums."""


@dataclass(frozen=True, slots=True)
class Settled:
    """The sums after an addition, the requests of that minute, and the tenant's own quotas, None where it has none."""

    usage: Usage
    requests: int
    quotas: Quotas | None


class UsageStore(Protocol):
    """Sums and quotas of all tenants."""

    async def settle(self, tenant: TenantId, added: Usage, requests: int, minute: int) -> Settled:
        """Add what a process has counted. `minute` counts from the epoch."""
        ...

    async def recount(self, tenant: TenantId) -> Counted:
        """Count every tree of a tenant, one read each, and put the sums right."""
        ...

    async def set_quotas(self, tenant: TenantId, quotas: Quotas | None) -> None:
        """Give a tenant quotas of its own; None takes them away."""
        ...


def charges_from(flat: Mapping[str, int]) -> dict[str, Charge]:
    """Charges by agent, from `<agent>\\n<what>` to a number as trees keep them."""
    agents: dict[str, dict[str, int]] = {}
    for name, count in flat.items():
        agent, _, what = name.rpartition("\n")
        if what in _FIELDS:  # a newer version of us may count more
            agents.setdefault(agent, {})[_FIELDS[what]] = count
    return {agent: Charge(**counts) for agent, counts in agents.items()}


def flat_charges(agents: Mapping[str, Charge]) -> dict[str, int]:
    """The way back from `charges_from`."""
    return {
        f"{agent}\n{what}": getattr(charge, field)
        for agent, charge in agents.items()
        for what, field in _FIELDS.items()
        if getattr(charge, field)
    }
