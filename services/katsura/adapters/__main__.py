"""The MCP server as a process on standard input and output: `katsura mcp` starts it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

from katsura.adapters.mcp import TreeTools, server_of
from katsura.sdk.blocks import BlockClient
from katsura.sdk.connection import connect
from katsura.sdk.memory import MemoryClient


async def serve(environ: Mapping[str, str]) -> None:
    """Serve until standard input ends."""
    address, key = environ["KATSURA_MEMORY_ADDRESS"], environ["KATSURA_API_KEY"]
    async with connect(address, api_key=key) as connection:
        await server_of(TreeTools(MemoryClient(connection), BlockClient(connection))).run_stdio_async()


if __name__ == "__main__":
    missing = [name for name in ("KATSURA_MEMORY_ADDRESS", "KATSURA_API_KEY") if not os.environ.get(name)]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not set; start this with `katsura mcp`")
    asyncio.run(serve(os.environ))
