"""`katsura mcp` and `katsura work`: become a program of `katsura.adapters` beside a memory service.

The MCP server is for clients that start it and speak over its pipes; the worker lets a language model summarise.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from katsura.cli.direct import memory_address
from katsura.domain.errors import FailedPreconditionError, UnauthenticatedError


def mcp(data: Path, address: str, api_key: str, http: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by the server. `address` empty is the memory service that runs from `data`.

    Args:
        http: the server's own arguments, if it is to serve HTTP: then each request brings a key of its own.

    Raises:
        NotRunningError: there is no address, and nothing runs from `data`.
        UnauthenticatedError: there is no key.
        FailedPreconditionError: the package that speaks MCP is not installed.
    """
    if http:
        found = {**environ, "KATSURA_MEMORY_ADDRESS": address or memory_address(data)}
    else:
        found = _beside(data, address, api_key, environ)
    if importlib.util.find_spec("mcp") is None:
        raise FailedPreconditionError("the package mcp is not installed; pip install 'katsura[adapters]'")
    _become(["katsura.adapters", *http], found)


def work(data: Path, address: str, api_key: str, rest: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by the worker; `rest` are its own arguments (`katsura.adapters.worker`). Raises as `mcp`."""
    asked = rest[1:] if rest[:1] == ["--"] else rest
    found = dict(environ) if "--help" in asked else _beside(data, address, api_key, environ)
    _become(["katsura.adapters.worker", *asked], found)


def _beside(data: Path, address: str, api_key: str, environ: Mapping[str, str]) -> dict[str, str]:
    address = address or memory_address(data)
    if not api_key:
        raise UnauthenticatedError(
            "there is no key: make one with `katsura key create --tenant NAME`, set KATSURA_API_KEY"
        )
    return {**environ, "KATSURA_MEMORY_ADDRESS": address, "KATSURA_API_KEY": api_key}


def _become(program: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, "-m", *program], environ)  # noqa: S606  ourselves, by path
