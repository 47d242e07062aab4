"""`katsura status`: what runs from a data folder, and how it is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from katsura.cli.data import RunRecord, running
from katsura.cli.exit import Exit
from katsura.cli.health import Health, probe_all
from katsura.cli.narrate import process_table


def status(data: Path, as_json: bool, console: Console) -> Exit:
    """Print every process with its health; UNHEALTHY if one is not serving."""
    record = running(data)
    healths = asyncio.run(probe_all(record))
    if as_json:
        console.print_json(json.dumps(as_dict(record, healths)))
    else:
        console.print(Text.assemble(("katsura ", "bold"), record.version, "  ", (record.url, "bold")))
        console.print(process_table(record, [_words(health) for health in healths]))
    return Exit.OK if all(health.good for health in healths) else Exit.UNHEALTHY


def as_dict(record: RunRecord, healths: list[Health]) -> dict[str, object]:
    """What `--json` prints: no secrets, stable names."""
    return {
        "pid": record.pid,
        "url": record.url,
        "version": record.version,
        "store": record.store_url,
        "durability": record.durability,
        "healthy": all(health.good for health in healths),
        "processes": [
            {
                "name": process.name,
                "role": process.role,
                "pid": process.pid,
                "address": process.address,
                "state": process.state,
                "health": health.state,
                "why": health.why,
                "milliseconds": health.milliseconds,
                "restarts": process.restarts,
            }
            for process, health in zip(record.processes, healths, strict=True)
        ],
    }


def _words(health: Health) -> str:
    return f"{health.state} ({health.milliseconds:g} ms)" if health.good else f"{health.state}: {health.why}"
