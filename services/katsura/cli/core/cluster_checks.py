"""What the facts of `katsura doctor --cluster` mean. Pure: `cluster` asks kubectl, these functions judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from katsura.cli.core.checks import Finding, bad, good, warn

Object = Mapping[str, Any]
_APPLY: Final = "katsura crds | kubectl apply --server-side -f -"
_OLDEST: Final = (1, 28)


def server(info: Object | None, trouble: str) -> Finding:
    """The API server, from `kubectl version -o json`."""
    if info is None or "serverVersion" not in info:
        why = trouble or "kubectl knows no server"
        return bad("cluster", why, "check `kubectl config current-context` and `kubectl get nodes`")
    said = info["serverVersion"]
    version = (int(said["major"]), int("".join(c for c in said["minor"] if c.isdigit())))
    text = f"Kubernetes {said.get('gitVersion', '.'.join(map(str, version)))}"
    if version < _OLDEST:
        return bad("cluster", text, f"rules in our definitions need {_OLDEST[0]}.{_OLDEST[1]} or newer")
    return good("cluster", text)


def definitions(found: Sequence[Object], wanted: Sequence[Object]) -> Iterator[Finding]:
    """The custom resource definitions, against those of this version."""
    there = {str(o["metadata"]["name"]): o for o in found}
    missing = [str(o["metadata"]["name"]) for o in wanted if o["metadata"]["name"] not in there]
    if missing:
        yield bad("definitions", f"missing: {', '.join(missing)}", _APPLY)
        return
    old = [str(o["metadata"]["name"]) for o in wanted if _fields(there[o["metadata"]["name"]]) != _fields(o)]
    if old:
        yield warn("definitions", f"of another version: {', '.join(old)}", _APPLY)
        return
    yield good("definitions", f"{len(wanted)} kinds, of this version")


def workload(name: str, found: Sequence[Object], mend: str) -> Finding:
    """A Deployment of the chart: operator or gateway."""
    if not found:
        return bad(name, "not installed here", mend)
    obj = found[0]
    wanted, ready = (obj.get("spec") or {}).get("replicas", 1), (obj.get("status") or {}).get("readyReplicas", 0)
    where = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
    if ready < wanted:
        return bad(
            name, f"{where}: {ready} of {wanted} pods are ready", f"kubectl describe pod -n {where.partition('/')[0]}"
        )
    return good(name, f"{where}: {ready} ready")


def election(lease: Object | None, age_s: float | None) -> Finding:
    """Who leads. `age_s`: seconds since the lease was renewed, None where it never was."""
    holder = ((lease or {}).get("spec") or {}).get("holderIdentity") or ""
    if not holder or age_s is None:
        return bad("election", "no operator holds the lease", "kubectl logs deploy/katsura-operator")
    if age_s > 60:
        return bad("election", f"{holder} has been silent for {age_s:.0f} s", "kubectl logs deploy/katsura-operator")
    return good("election", f"{holder} leads")


def resource(obj: Object) -> Finding:
    """A resource of ours by its Ready condition."""
    kind, name = str(obj["kind"]), str(obj["metadata"]["name"])
    check = f"{kind} {name}"
    conditions = (obj.get("status") or {}).get("conditions") or ()
    ready = next((c for c in conditions if c.get("type") == "Ready"), None)
    if ready is None:
        return warn(check, "nobody has said anything about it yet", "is an operator serving this namespace?")
    said = f"{ready['reason']}: {ready['message']}" if ready.get("message") else str(ready["reason"])
    if ready.get("observedGeneration", 0) < obj["metadata"].get("generation", 0):
        return warn(check, f"{said} (of an older generation)", "the operator has not seen the last change yet")
    if ready["status"] != "True":
        return bad(check, said, f"kubectl -n {obj['metadata']['namespace']} describe {kind.lower()} {name}")
    degraded = next((c for c in conditions if c.get("type") == "Degraded" and c.get("status") == "True"), None)
    if degraded is not None:
        return warn(check, f"ready, but {degraded['message']}", f"kubectl get pods -l katsura.dev/deployment={name}")
    return good(check, said)


def _fields(definition: Object) -> set[str]:
    """Every field of every version: what the API server adds to a schema does not matter, what it lacks does."""
    names: set[str] = set()

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for key, value in (node.get("properties") or {}).items():
                names.add(f"{path}.{key}")
                walk(value, f"{path}.{key}")
            walk(node.get("items"), f"{path}[]")

    for version in definition["spec"]["versions"]:
        walk(version["schema"]["openAPIV3Schema"], str(version["name"]))
    return names
