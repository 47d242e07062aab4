"""The Helm binaries of this machine, and the chart as they render it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from katsura.testing.kube import find_binaries

PROJECT = Path(__file__).resolve().parents[2]
CHART = PROJECT / "charts" / "katsura"
KUBERNETES = "1.35.0"
sys.path.insert(0, str(PROJECT / "deploy"))
from chart_variants import arguments  # noqa: E402  the program of `make chart` reads the same list


def helms() -> dict[str, str]:
    """Every Helm there is: on the PATH, beside the Kubernetes binaries (Helm 3), fetched by `make chart` (Helm 4)."""
    beside = find_binaries(os.environ, PROJECT)
    found = {
        "path": shutil.which("helm"),
        "helm3": str(beside / "helm3") if beside and (beside / "helm3").exists() else None,
        "helm4": shutil.which(str(PROJECT / ".bench" / "chart" / "helm")),
    }
    return {name: path for name, path in found.items() if path}


@dataclass(frozen=True)
class Helm:
    """One Helm. `chart` is ours."""

    path: str
    chart: Path = CHART

    def run(self, command: str, *args: str) -> subprocess.CompletedProcess[str]:
        """`helm COMMAND rel CHART -n ns ARGS`."""
        line = [self.path, command, "rel", str(self.chart), "-n", "ns", *args]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)

    def render(self, *values: str) -> list[dict[str, Any]]:
        """What the chart becomes with `--set` of each of `values`; an error of Helm fails the test."""
        return _rendered(self, values)


@cache
def _rendered(helm: Helm, values: tuple[str, ...]) -> list[dict[str, Any]]:
    done = helm.run("template", "--kube-version", KUBERNETES, *arguments(values))
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document]


@pytest.fixture
def every_helm() -> dict[str, Helm]:
    """All that there are; at least one."""
    found = {name: Helm(path) for name, path in helms().items()}
    if not found:
        why = "no helm: put one on the PATH, or set KUBEBUILDER_ASSETS to a folder with helm3, or run `make chart`"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


@pytest.fixture
def helm(every_helm: dict[str, Helm]) -> Helm:
    """One of them; a test of its own holds them together."""
    return next(iter(every_helm.values()))


@pytest.fixture
def render(helm: Helm) -> Callable[..., list[dict[str, Any]]]:
    """`render(*values)`: the chart's documents as YAML reads them."""
    return helm.render
