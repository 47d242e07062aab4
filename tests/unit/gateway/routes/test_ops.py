"""Readiness, and what a cluster leaves out of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from katsura.domain.errors import UnavailableError
from katsura.gateway.routes.ops import ops_routes


class Peer:
    """A peer, or a store, that is there or says why not."""

    def __init__(self, why: str = "", models: tuple[Any, ...] = ()) -> None:
        self._why, self._models = why, models

    async def require_serving(self, timeout_s: float) -> None:
        if self._why:
            raise UnavailableError(self._why)

    async def list_tenants(self) -> list[str]:
        await self.require_serving(0)
        return []

    def acting_for(self, call: Any, timeout_s: float) -> Peer:
        return self

    async def list_models(self) -> tuple[Any, ...]:
        await self.require_serving(0)
        return self._models


async def readyz(path: str, *, store: str = "", memory: str = "", routers: tuple[str, ...] = ("",), model: str) -> Any:
    models = (SimpleNamespace(name="chat", not_ready_reason=model),)
    deps: Any = SimpleNamespace(
        config=SimpleNamespace(instance_id="g"),
        tenants=Peer(store),
        peers={"memory": Peer(memory), **{f"router-{i}": Peer(why) for i, why in enumerate(routers)}},
        router=Peer("", models),
    )
    app = FastAPI()
    app.include_router(ops_routes(deps))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        return await client.get(path)


async def test_a_gateway_without_a_model_is_not_ready_to_serve_and_is_ready_for_a_cluster() -> None:
    answer = await readyz("/readyz", model="no member holds group 3")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == [{"component": "models", "reason": "chat: no member holds group 3"}]
    cluster = await readyz("/readyz?models=false", model="no member holds group 3")
    assert (cluster.status_code, cluster.json()) == (200, {"ready": True, "reasons": []})


@pytest.mark.parametrize("part", ["store", "memory", "router"])
async def test_a_peer_that_is_away_counts_with_models_and_without(part: str) -> None:
    said: dict[str, Any] = {"routers": ("away",)} if part == "router" else {part: "away"}
    for path in ("/readyz", "/readyz?models=false"):
        answer = await readyz(path, model="", **said)
        assert answer.status_code == 503
        assert [reason["component"] for reason in answer.json()["reasons"]] == [part]


async def test_one_router_of_several_is_enough() -> None:
    assert (await readyz("/readyz?models=false", routers=("away", ""), model="")).status_code == 200
