"""What runs in the chart's hooks: `test` proves the installation, `pre-delete` and `post-delete` leave nothing behind.

    python3 -c "$(cat hooks.py)" test|pre-delete|post-delete

Only what the services image has: the command line of Katsura, httpx, a service account.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

from katsura.cli.client import Answer, Gateway, Position

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
GROUP = "/apis/katsura.dev/v1alpha1"
SECONDS_MAX = float(os.environ.get("SECONDS_MAX", "300"))
NAMESPACE = os.environ["NAMESPACE"]
RELEASE = os.environ["RELEASE"]
OURS = "app.kubernetes.io/managed-by=katsura-operator"
PURGE = "katsura.dev/purge"
"""Finalizer of stores whose deletion deletes their trees first."""
FORGET = """kubectl patch memorystore {} -n {} --type merge -p '{{"metadata":{{"finalizers":null}}}}'"""
RETAIN = """kubectl patch memorystore {} -n {} --type merge -p '{{"spec":{{"deletionPolicy":"Retain"}}}}'"""


class Api:
    """The few calls of the API server that hooks make."""

    def __init__(self) -> None:
        self._http = httpx.Client(
            base_url=f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}",
            headers={"authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
            verify=ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")),
            timeout=30.0,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def items(self, path: str, plural: str, selector: str = "") -> list[dict[str, Any]]:
        """What there is in our namespace; nothing where the kind is not known any more."""
        answer = self._http.get(f"{path}/namespaces/{NAMESPACE}/{plural}", params={"labelSelector": selector})
        if answer.status_code == 404:
            return []
        return list(answer.raise_for_status().json()["items"])

    def get(self, path: str, plural: str, name: str) -> dict[str, Any]:
        """One resource."""
        return dict(self._http.get(f"{path}/namespaces/{NAMESPACE}/{plural}/{name}").raise_for_status().json())

    def apply(self, path: str, plural: str, body: dict[str, Any]) -> None:
        """Server-side apply."""
        self._http.patch(
            f"{path}/namespaces/{NAMESPACE}/{plural}/{body['metadata']['name']}",
            params={"fieldManager": "katsura-test", "force": "true"},
            headers={"content-type": "application/apply-patch+yaml"},
            content=json.dumps(body),
        ).raise_for_status()

    def delete(self, path: str, plural: str, name: str) -> None:
        """Delete one resource; one that is gone is no trouble."""
        url = f"{path}/namespaces/{NAMESPACE}/{plural}/{name}"
        answer = self._http.delete(url, params={"propagationPolicy": "Background"})  # a Job's pods would stay
        if answer.status_code != 404:
            answer.raise_for_status()
            say(f"deleted {plural}/{name}")


def say(text: str) -> None:
    """Tell whoever reads the logs."""
    print(text, flush=True)


def condition(resource: dict[str, Any], kind: str = "Ready") -> tuple[bool, str]:
    """Whether a condition is true of the resource as it is now, and what it says."""
    generation = resource["metadata"]["generation"]
    for found in resource.get("status", {}).get("conditions", ()):
        if found["type"] == kind:
            current = found.get("observedGeneration", generation) == generation
            return current and found["status"] == "True", f"{found['reason']}: {found['message']}"
    return False, "no status yet"


def is_held(resource: dict[str, Any]) -> bool:
    """Whether its deletion waits until its trees are deleted."""
    return PURGE in resource["metadata"].get("finalizers", ())


def until_ready(api: Api, plural: str, name: str) -> None:
    """Wait for Ready and tell every reason on the way."""
    start_s, told = time.monotonic(), ""
    while True:
        ready, why = condition(api.get(GROUP, plural, name))
        if why != told:
            say(f"  {plural}/{name} {why}")
            told = why
        if ready:
            say(f"  Ready after {time.monotonic() - start_s:.0f} s")
            return
        if time.monotonic() - start_s > SECONDS_MAX:
            raise SystemExit(f"{plural}/{name} is not Ready after {SECONDS_MAX:.0f} s: {why}")
        time.sleep(1.0)


def keys(*args: str) -> str:
    """`katsura key ...` on the installation's store; what it printed."""
    line = ["katsura", "key", *args, "--redis", os.environ["STORE_URL"]]
    start_s = time.monotonic()
    while True:
        done = subprocess.run(line, check=False, capture_output=True, text=True)  # noqa: S603
        if not done.returncode:
            return done.stdout
        why = done.stderr.strip() or done.stdout.strip()
        if "does not answer" not in why or time.monotonic() - start_s > SECONDS_MAX:
            raise SystemExit(f"katsura key {args[0]}: {why}")  # without the line itself: the URL has a password
        say(f"  {why}")


def ask(gateway: Gateway, model: str, place: Position, question: str) -> Answer:
    """Stream an answer, show it, and insist that it came in pieces."""
    say(f"  > {question}")
    pieces: list[str] = []
    start_s = time.monotonic()

    def heard(text: str) -> None:
        if not pieces:
            say(f"  first token after {time.monotonic() - start_s:.2f} s")
        pieces.append(text)

    answer = gateway.ask(model, [("user", question)], place, heard, max_tokens=48, temperature=0.0)
    say(f"  < {''.join(pieces).strip()}")
    if len(pieces) < 2:
        raise SystemExit("the answer did not come as a stream")
    return answer


def test(api: Api) -> None:
    """Wait for every model, stream a chat, fork its session, apply a resource and see it Ready."""
    names = [item["metadata"]["name"] for item in api.items(GROUP, "modeldeployments")]
    if not names:
        raise SystemExit("there is no ModelDeployment to test with; apply one (deploy/samples), then test again")
    for name in names:
        say(f"model {name}")
        until_ready(api, "modeldeployments", name)
    made = json.loads(keys("create", "--tenant", "helm-test", "--name", "helm-test", "--json"))
    try:
        with Gateway(os.environ["GATEWAY_URL"], made["key"]) as gateway:
            session = gateway.make_session()
            say(f"chat in session {session}")
            branch = gateway.tree(session).default_branch
            first = ask(gateway, names[0], Position(session, branch), "What is the capital of France?")
            say("fork after the first answer")
            forked = gateway.fork(session, first.position.branch, first.position.node_id, "helm-test")
            second = ask(gateway, names[0], Position(session, forked.name, forked.head), "Name a river there.")
            if second.cached_tokens == 0:
                raise SystemExit("the fork did not reuse the pages of its parent")
            say(f"  {second.cached_tokens} of {second.prompt_tokens} prompt tokens came from the parent's pages")
            metrics = httpx.get(f"{os.environ['GATEWAY_URL']}/metrics", timeout=30.0).raise_for_status().text
            if "vllm:request_success_total" not in metrics:
                raise SystemExit("the gateway's metrics do not count requests")
    finally:
        keys("revoke", made["id"])
    say("apply an Agent")
    agent = {
        "apiVersion": "katsura.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": "helm-test", "namespace": NAMESPACE},
        "spec": {"modelRef": {"name": names[0]}},
    }
    api.apply(GROUP, "agents", agent)
    try:
        until_ready(api, "agents", "helm-test")
    finally:
        api.delete(GROUP, "agents", "helm-test")
    say("everything works")


def pre_delete(api: Api) -> None:
    """While the operator still runs: delete the release's resources and wait until their finalizers are done."""
    mine = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/managed-by=Helm"
    for plural in ("modeldeployments", "memorystores"):
        for item in api.items(GROUP, plural, mine):
            api.delete(GROUP, plural, item["metadata"]["name"])
    start_s, told = time.monotonic(), ""
    while left := [i for plural in ("modeldeployments", "memorystores") for i in api.items(GROUP, plural, mine)]:
        why = "; ".join(f"{item['metadata']['name']} {condition(item)[1]}" for item in left)
        if why != told:
            say(f"  {why}")
            told = why
        if time.monotonic() - start_s > SECONDS_MAX:
            names = [item["metadata"]["name"] for item in left]
            ways = "; ".join(RETAIN.format(n, NAMESPACE) for n, item in zip(names, left, strict=True) if is_held(item))
            raise SystemExit(
                f"{', '.join(names)}: still not gone after {SECONDS_MAX:.0f} s; is the operator running?"
                + (f" To uninstall and keep the trees: {ways}, and `helm uninstall` again." if ways else "")
            )
        time.sleep(0.5)


def post_delete(api: Api) -> None:
    """After the operator: remove what it made that belongs to no resource, unless somebody's resources are left."""
    api.delete("/api/v1", "pods", "katsura-test")
    left = [(p, i) for p in ("modeldeployments", "memorystores") for i in api.items(GROUP, p)]
    if left:
        say(f"kept, with what the operator made: {', '.join(p + '/' + i['metadata']['name'] for p, i in left)}")
        for name in (item["metadata"]["name"] for _, item in left if is_held(item)):
            say(f"  {name} asks for its trees to be deleted with it, which needs an operator; it ends without one by:")
            say("  " + FORGET.format(name, NAMESPACE))
        return
    for path, plural in (
        (GROUP, "rolepools"),
        (GROUP, "placementplans"),
        ("/apis/apps/v1", "deployments"),
        ("/apis/policy/v1", "poddisruptionbudgets"),
        ("/apis/networking.k8s.io/v1", "networkpolicies"),
        ("/apis/batch/v1", "jobs"),
        ("/api/v1", "services"),
    ):
        for item in api.items(path, plural, OURS):
            api.delete(path, plural, item["metadata"]["name"])
    api.delete("/api/v1", "secrets", "katsura-tls")
    api.delete("/api/v1", "secrets", "katsura-ca")
    api.delete("/apis/coordination.k8s.io/v1", "leases", "katsura-operator")


if __name__ == "__main__":
    with Api() as the_api:
        {"test": test, "pre-delete": pre_delete, "post-delete": post_delete}[sys.argv[1]](the_api)
