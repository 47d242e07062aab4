"""`katsura key quota`: what a tenant may have, written through `state` into the store of a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from rich.console import Console

from katsura.cli.exit import Exit
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import TenantId, checked_name
from katsura.domain.usage import Quotas


def quota(
    store_url: str, tenant: str, changes: Mapping[str, int | None], clear: bool, as_json: bool, console: Console
) -> Exit:
    """Change what is given in `changes` (None keeps it), or `clear` all of it; then show what holds.

    Raises:
        InvalidArgumentError: a number is negative.
    """
    checked_name(tenant, "tenant")
    said = {name: value for name, value in changes.items() if value is not None}
    for name, value in said.items():
        if value < 0:
            raise InvalidArgumentError(f"--{name.replace('_', '-')}: {value} is negative; 0 sets no limit", field=name)
    found = asyncio.run(_change(store_url, TenantId(tenant), said, clear))
    if as_json:
        console.print_json(json.dumps(asdict(found) if found else None))
    elif found is None:
        console.print(f"{tenant} has no quotas of its own; those of the memory service's configuration hold")
    else:
        for name, limit in asdict(found).items():
            console.print(f"{name.replace('_', ' '):20} {limit or 'no limit'}", highlight=False)
    return Exit.OK


async def _change(store_url: str, tenant: TenantId, said: Mapping[str, int], clear: bool) -> Quotas | None:
    # Imported here: redis belongs to the extra `services`, which most commands do without.
    from katsura.domain.usage import Usage
    from katsura.rpc.clock import SystemClock
    from katsura.state.connect import Store
    from katsura.state.usage_redis import RedisUsageStore

    store = await Store.open(store_url, wait_s=5.0)
    try:
        sums = RedisUsageStore(store)
        minute = SystemClock().wall_ms() // 60_000
        found = None if clear else (await sums.settle(tenant, Usage(), 0, minute)).quotas
        if said:
            found = replace(found or Quotas(), **said)
        if said or clear:
            await sums.set_quotas(tenant, found)
        return found
    finally:
        await store.close()
