"""What kubelets and Prometheus read."""

from __future__ import annotations

import httpx
import pytest

from katsura_operator import loop
from katsura_operator.execute import Outcome
from katsura_operator.health import serve


@pytest.mark.parametrize(
    ("alive", "ready", "healthz", "readyz"),
    [("", "", 200, 200), ("", "no answer yet", 200, 503), ("no pass for 400 s", "", 503, 503)],
)
async def test_a_process_is_alive_or_ready_or_says_why_not(alive: str, ready: str, healthz: int, readyz: int) -> None:
    async with (
        serve("127.0.0.1:0", lambda: alive, lambda: ready) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        lives, serves = await client.get("/healthz"), await client.get("/readyz")
        assert (lives.status_code, serves.status_code) == (healthz, readyz)
        assert lives.json() == ({"why": alive} if alive else {})
        assert serves.json() == ({"why": alive or ready} if alive or ready else {})


async def nothing() -> Outcome:
    return Outcome()


async def test_metrics_count_the_passes() -> None:
    await loop.Loop(nothing, 60.0)._pass()
    async with serve("127.0.0.1:0", str, str) as port, httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    assert 'katsura_operator_reconcile_total{result="done"}' in answer.text


async def test_the_port_is_free_again_afterwards() -> None:
    async with serve("127.0.0.1:0", str, str) as port:
        pass
    async with serve(f"127.0.0.1:{port}", str, str) as again:
        assert again == port
