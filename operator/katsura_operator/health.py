"""HTTP for kubelets and Prometheus: `/healthz` (the loop lives), `/readyz` (we know who leads), `/metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from katsura.telemetry import metrics


@asynccontextmanager
async def serve(listen: str, alive: Callable[[], str], ready: Callable[[], str]) -> AsyncIterator[int]:
    """Serve at `host:port`; `alive` and `ready` say what is wrong, or nothing. Yields the port."""

    def answer(why: str) -> web.Response:
        return web.json_response({"why": why} if why else {}, status=503 if why else 200)

    async def healthz(_: web.Request) -> web.Response:
        return answer(alive())

    async def readyz(_: web.Request) -> web.Response:
        return answer(alive() or ready())

    async def measured(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": metrics.TEXT_FORMAT})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", measured)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        host, _, port = listen.rpartition(":")
        site = web.TCPSite(runner, host.strip("[]"), int(port))
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
