"""What commands ask of a cluster, through kubectl and so with the rights and the context of whoever calls them.

`katsura doctor --cluster` judges nothing here; `katsura key --cluster` runs in the gateway, which knows its store.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from katsura.cli.core import cluster_checks as checks
from katsura.cli.core.checks import Finding, bad
from katsura.cli.exit import Exit
from katsura.domain.errors import FailedPreconditionError
from katsura.manifests.crds import crd, definitions

TENANT_LABEL: Final = "katsura.dev/tenant"
_TIMEOUT_S: Final = 30.0
_KINDS: Final = "modeldeployments,memorystores,agents"
_INSTALL: Final = "helm install katsura charts/katsura"


def findings(namespace: str) -> Iterator[Finding]:
    """Every check of the cluster; `namespace` empty: the one of kubectl's context."""
    if shutil.which("kubectl") is None:
        yield bad("kubectl", "not found", "install kubectl, of about the cluster's version")
        return
    info, trouble = _ask("version", "-o", "json")
    first = checks.server(info, trouble)
    yield first
    if info is None or "serverVersion" not in info:
        return
    yield from checks.definitions(
        _items("get", "crd", "-l", "app.kubernetes.io/part-of=katsura"), [crd(d) for d in definitions()]
    )
    here = ("-n", namespace) if namespace else ()
    # One operator may serve many namespaces from its own.
    asked = ("get", "deployments", "-l", "katsura.dev/role=operator")
    operators = _items(*here, *asked) or _items(*asked, "-A")
    yield checks.workload("operator", operators, _INSTALL)
    yield checks.workload("gateway", _items(*here, "get", "deployments", "-l", "katsura.dev/role=gateway"), _INSTALL)
    home = ("-n", str(operators[0]["metadata"]["namespace"])) if operators else here
    lease, _ = _ask(*home, "get", "lease", "katsura-operator", "-o", "json")
    yield checks.election(lease, _age_s(lease))
    for obj in _items(*here, "get", _KINDS):
        yield checks.resource(obj)


def tenant_of(namespace: str) -> str:
    """The tenant of a namespace: its label `katsura.dev/tenant`, else its name. FailedPreconditionError: no kubectl, or
    no such namespace that the caller may see."""
    found, trouble = _ask("get", "namespace", namespace, "-o", "json")
    if found is None:
        raise FailedPreconditionError(f"namespace {namespace}: {trouble}", field="--of-namespace")
    return str((found["metadata"].get("labels") or {}).get(TENANT_LABEL) or namespace)


def in_gateway(namespace: str, *words: str) -> Exit:
    """Run `katsura WORDS` on the store of the installation in `namespace`; it prints for itself."""
    script = 'exec katsura "$@" --redis "$KATSURA_STORE_URL"'
    command = ["kubectl", "-n", namespace, "exec", "deploy/katsura-gateway", "--", "sh", "-c", script, "sh", *words]
    try:
        done = subprocess.run(command, check=False)  # noqa: S603
    except OSError as error:
        raise FailedPreconditionError(
            f"kubectl did not run: {error}; install it, or name a store by --redis"
        ) from error
    return Exit(done.returncode) if done.returncode in [each.value for each in Exit] else Exit.FAILED


def _items(*args: str) -> list[Mapping[str, Any]]:
    found, _ = _ask(*args, "-o", "json")
    return list((found or {}).get("items", ()))


def _ask(*args: str) -> tuple[dict[str, Any] | None, str]:
    """kubectl's answer as JSON, or None and the end of what it complained about."""
    command = ["kubectl", f"--request-timeout={_TIMEOUT_S:.0f}s", *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"kubectl did not answer: {error}"
    try:
        made: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return None, (done.stderr.strip().splitlines() or [f"kubectl ended with {done.returncode}"])[-1]
    return made, done.stderr.strip()


def _age_s(lease: Mapping[str, Any] | None) -> float | None:
    renewed = ((lease or {}).get("spec") or {}).get("renewTime")
    return None if not renewed else (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds()
