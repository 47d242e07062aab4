"""The MCP server as a process, on standard input and output or over HTTP: `katsura mcp` starts it."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from katsura.adapters.mcp import TreeTools, server_of
from katsura.adapters.mcp_http import HttpPlace, serve_http
from katsura.domain.errors import KatsuraError
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.connection import connect


async def serve(environ: Mapping[str, str], place: HttpPlace | None) -> None:
    """Serve `place`, or, without one, standard input until it ends."""
    files = [environ.get(name, "") for name in ("KATSURA_TLS_CERT", "KATSURA_TLS_KEY", "KATSURA_TLS_CA")]
    tls = TlsFiles(*map(Path, files)) if all(files) else None
    key = environ.get("KATSURA_API_KEY", "")
    async with connect(environ["KATSURA_MEMORY_ADDRESS"], api_key=key, tls=tls) as connection:
        if place is None:
            await server_of(TreeTools(lambda: connection)).run_stdio_async()
        else:
            await serve_http(connection, place, lambda url: print(f"MCP is served at {url}", file=sys.stderr))


def main() -> None:
    """Read the arguments that `katsura mcp` passes on, and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", type=int, metavar="PORT")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    given = parser.parse_args()
    place = None if given.http is None else HttpPlace(given.host, given.http, given.tls_cert, given.tls_key)
    needed = ["KATSURA_MEMORY_ADDRESS"] if place else ["KATSURA_MEMORY_ADDRESS", "KATSURA_API_KEY"]
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        sys.exit(f"{' and '.join(missing)}: not set; start this with `katsura mcp`")
    try:
        asyncio.run(serve(os.environ, place))
    except KatsuraError as error:
        sys.exit(error.message)
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
