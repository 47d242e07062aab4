"""The memory service itself, for what HTTP does not offer: comparing, moving, checking and explaining trees.

Whose trees: the API key's; without one, on the machine that runs them, the tenant's that works without keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from katsura.cli.data import RunRecord, running
from katsura.cli.exit import NotRunningError
from katsura.domain.errors import UnauthenticatedError, UnavailableError
from katsura.domain.ids import DEFAULT_TENANT
from katsura.domain.tenant import Tenant
from katsura.rpc.context import CallContext
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.connection import Connection, connect
from katsura.sdk.memory import MemoryClient

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MemoryDoor:
    """Which memory service, and as whom. `address` empty is the one that runs from `data`."""

    data: Path
    address: str = ""
    api_key: str = ""
    tls: TlsFiles | None = None

    def ask(self, work: Callable[[MemoryClient], Awaitable[T]]) -> T:
        """The result of `work`.

        Raises:
            NotRunningError: there is no address, and nothing runs from `data`.
            UnauthenticatedError: there is no key, and the service is not the one of `data`.
            UnavailableError: the service does not answer.
        """
        return self.ask_over(lambda connection: work(MemoryClient(connection)))

    def ask_over(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """`ask`, for the other services of a memory process."""
        try:
            return asyncio.run(self._ask(work))
        except UnavailableError as error:
            where = self.address or f"of {self.data}"
            raise UnavailableError(f"the memory service {where} does not answer: {error.message}") from error

    async def _ask(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        if self.api_key:
            address = self.address or memory_address(self.data)
            async with connect(address, api_key=self.api_key, tls=self.tls) as connection:
                return await work(connection)
        if self.address:
            raise UnauthenticatedError(
                "there is no key: make one with `katsura key create --tenant NAME`, set KATSURA_API_KEY"
            )
        record = running(self.data)
        call = CallContext(await _keyless_tenant(record), internal=True)
        async with connect(memory_address(self.data), internal_token=record.token) as connection:
            return await work(connection.acting_for(call))


def memory_address(data: Path) -> str:
    """Where the memory service of a data folder listens.

    Raises:
        NotRunningError: none runs from there.
    """
    for process in running(data).processes:
        if process.role == "memory" and process.address:
            return process.address
    raise NotRunningError(f"no memory service runs from {data}; name one with --memory")


def tls_files(environ: Mapping[str, str]) -> TlsFiles | None:
    """Our certificate, its key and the authority, for a memory service on another machine; None unless all are set."""
    names = ("KATSURA_TLS_CERT", "KATSURA_TLS_KEY", "KATSURA_TLS_CA")
    files = [environ.get(name, "") for name in names]
    return TlsFiles(*map(Path, files)) if all(files) else None


async def _keyless_tenant(record: RunRecord) -> Tenant:
    # Imported here: redis belongs to the extra `services`, which a client of a remote installation need not have.
    from katsura.rpc.clock import SystemClock
    from katsura.state.connect import Store
    from katsura.state.tenants import RedisTenantStore

    store = await Store.open(record.store_url, wait_s=5.0)
    try:
        return await RedisTenantStore(store, SystemClock()).ensure_tenant(DEFAULT_TENANT)
    finally:
        await store.close()
