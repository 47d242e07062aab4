"""`katsura mcp`: becomes the MCP server of a memory service, for clients that start it and speak over its pipes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from katsura.cli.data import running
from katsura.cli.exit import NotRunningError
from katsura.domain.errors import FailedPreconditionError, UnauthenticatedError


def mcp(data: Path, address: str, api_key: str, environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by the server. `address` empty is the memory service that runs from `data`.

    Raises:
        NotRunningError: there is no address, and nothing runs from `data`.
        UnauthenticatedError: there is no key.
        FailedPreconditionError: the package that speaks MCP is not installed.
    """
    address = address or _address_of(data)
    if not api_key:
        raise UnauthenticatedError(
            "there is no key: make one with `katsura key create --tenant NAME`, set KATSURA_API_KEY"
        )
    if importlib.util.find_spec("mcp") is None:
        raise FailedPreconditionError("the package mcp is not installed; pip install 'katsura[adapters]'")
    found = {**environ, "KATSURA_MEMORY_ADDRESS": address, "KATSURA_API_KEY": api_key}
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", "katsura.adapters"], found)  # noqa: S606  ourselves, by path


def _address_of(data: Path) -> str:
    for process in running(data).processes:
        if process.role == "memory" and process.address:
            return process.address
    raise NotRunningError(f"no memory service runs from {data}; name one with --memory")
