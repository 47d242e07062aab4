"""Asks processes how they are: the health check of gRPC, `/readyz` of the gateway, PING of a store."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from katsura.cli.core.layout import Role
from katsura.cli.data import ProcessRecord, RunRecord
from katsura.cli.supervisor import answers_ping
from katsura.rpc.channel import open_channel

_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Health:
    """How a process answered. `state`: `serving`, `not-serving` or `unreachable`; `why` says more for people."""

    state: str
    why: str = ""
    milliseconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether the process does its work."""
        return self.state == "serving"


async def probe_all(record: RunRecord) -> list[Health]:
    """Ask every process of a run, all at once; in the order of `record.processes`."""
    return list(await asyncio.gather(*(probe(process, record.url) for process in record.processes)))


async def probe(process: ProcessRecord, url: str) -> Health:
    """Ask one process; `url` is the gateway's."""
    if process.pid is None:
        return Health("unreachable", f"no process: {process.last_end or process.state}")
    start_s = time.monotonic()
    role = Role(process.role)
    if role.is_store:
        good = await answers_ping(process.address.removeprefix("unix:"), _TIMEOUT_S)
        health = Health("serving") if good else Health("unreachable", "no answer to PING")
    elif role is Role.GATEWAY:
        health = await _ask_gateway(url)
    else:
        health = await _ask_grpc(process.address)
    return Health(health.state, health.why, round((time.monotonic() - start_s) * 1000, 1))


async def _ask_grpc(address: str) -> Health:
    async with open_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return Health("unreachable", f"{error.code().name}: {error.details()}")
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return Health("serving")
    return Health("not-serving", "starting, draining or waiting for a peer; its log says which")


async def _ask_gateway(url: str) -> Health:
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            answer = await client.get(f"{url}/readyz")
    except httpx.HTTPError as error:
        return Health("unreachable", f"{type(error).__name__}: {error}")
    return Health("serving") if answer.status_code == 200 else Health("not-serving", answer.text.strip()[:300])
