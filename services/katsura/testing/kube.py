"""A real Kubernetes control plane for tests: etcd and kube-apiserver on free loopback ports, no root, no nodes.

    with ControlPlane(folder, find_binaries(os.environ, project)) as plane:
        plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": "a"}})

Nothing is scheduled and no controller runs: an object changes only when somebody writes it, which is what a test of an
operator wants; `plane.set_in_motion` starts the controllers, the scheduler and pretended kubelets where one wants those
too. Every request of the user `OPERATOR` is in `plane.audit_log`; requests of the test itself are not.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

_START_LIMIT_S = 120.0
_STARTS_MAX = 4
"""Somebody else may take a free port before its server binds it; then there is another one."""
_POLL_S = 0.1
_TETHERED = (
    "import os, sys; from katsura.cli.tether import end_with_parent; "
    "end_with_parent(int(sys.argv[1])) and os.execv(sys.argv[2], sys.argv[2:])"
)
"""Becomes the program and ends with us, even where we are killed."""
OPERATOR = "katsura-operator"
"""User name of the operator under test: it has no rights but those that a test binds."""
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NEEDED = ("etcd", "kube-apiserver")
_MOVERS = ("kube-controller-manager", "kube-scheduler", "kwok")
_FAST = ("--kube-api-qps=500", "--kube-api-burst=1000", "--leader-elect=false", "--secure-port=0")
_NOW = "{{ Now | Quote }}"
_KUBELET: tuple[dict[str, Any], ...] = (
    {
        "selector": {
            "matchExpressions": [
                {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
                {"key": ".status.phase", "operator": "In", "values": ["Pending"]},
            ]
        },
        "next": {
            "statusTemplate": f"phase: Running\nstartTime: {_NOW}\nconditions:\n"
            f"- {{type: Ready, status: 'True', lastTransitionTime: {_NOW}}}\n"
        },
    },
    {
        "selector": {"matchExpressions": [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}]},
        "next": {"finalizers": {"empty": True}, "delete": True},
    },
)
"""What a pretended kubelet does: a pod that is bound runs and is ready at once, one that is deleted is gone at once."""


def find_binaries(environ: Mapping[str, str], project: Path) -> Path | None:
    """The folder of `KUBEBUILDER_ASSETS`, or the one beside the project; None where neither has the binaries."""
    said = environ.get("KUBEBUILDER_ASSETS")
    folders = [Path(said)] if said else [project.parent / "shared" / "kube" / "bin"]
    return next((f for f in folders if all((f / name).exists() for name in _NEEDED)), None)


class ControlPlane:
    """One control plane, as long as the block. `folder` holds its data and logs."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder, self.binaries = folder, binaries
        self._processes: list[subprocess.Popen[bytes]] = []
        self._admin, self._operator = secrets.token_hex(16), secrets.token_hex(16)
        self.server = ""
        self.audit_log = folder / "audit.log"
        self.authority = folder / "ca.crt"

    def __enter__(self) -> Self:
        for attempt in range(1, _STARTS_MAX + 1):
            try:
                self._start()
                return self
            except BaseException as error:
                self._stop()
                taken = isinstance(error, RuntimeError) and "address already in use" in str(error)
                if not taken or attempt == _STARTS_MAX:
                    raise
        raise AssertionError("the loop returns or raises")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def kubeconfig(self, *, operator: bool = False) -> Path:
        """Configuration of the administrator, or of the user `OPERATOR`."""
        path = self._folder / ("operator.kubeconfig" if operator else "kubeconfig")
        user = {"token": self._operator if operator else self._admin}
        cluster = {"server": self.server, "certificate-authority": str(self.authority)}
        made = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        path.write_text(json.dumps(made))
        path.chmod(0o600)
        return path

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> Any:
        """One request as administrator; the parsed answer. Raises `httpx.HTTPStatusError` with the server's message."""
        answer = self.ask(method, path, body, kind=kind)
        if answer.is_error:
            said = answer.json().get("message", answer.text) if answer.content else answer.reason_phrase
            raise httpx.HTTPStatusError(str(said), request=answer.request, response=answer)
        return answer.json()

    def ask(self, method: str, path: str, body: Any = None, *, kind: str = "application/json") -> httpx.Response:
        """One request as administrator, whatever the status."""
        content = None if body is None else json.dumps(body)
        return self._client.request(method, path, content=content, headers={"Content-Type": kind})

    def apply(self, path: str, body: Any, manager: str = "test") -> Any:
        """Server-side apply."""
        return self.call(
            "PATCH", f"{path}?fieldManager={manager}&force=true", body, kind="application/apply-patch+yaml"
        )

    def install(self, definitions: Sequence[Mapping[str, Any]]) -> None:
        """Apply CustomResourceDefinitions and wait until they are served."""
        for definition in definitions:
            self.apply(f"{_CRDS}/{definition['metadata']['name']}", definition)
        self.until_served([definition["metadata"]["name"] for definition in definitions])

    def until_served(self, names: Sequence[str]) -> None:
        """Wait until CustomResourceDefinitions are."""
        deadline_s = time.monotonic() + _START_LIMIT_S
        for name in names:
            while not self._established(name):
                assert time.monotonic() < deadline_s, f"{name} was never established"
                time.sleep(_POLL_S)

    def forget_history(self) -> None:
        """Compact etcd to what is now, as an API server does every five minutes: what reads older states meets 410."""
        found = httpx.post(f"{self._etcd}/v3/kv/range", json={"key": "AA=="}, timeout=60.0).raise_for_status()
        wanted = {"revision": found.json()["header"]["revision"], "physical": True}
        httpx.post(f"{self._etcd}/v3/kv/compaction", json=wanted, timeout=60.0).raise_for_status()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """The API server takes connections and answers nothing, as one on a frozen machine."""
        (server,) = (p for p in self._processes if "kube-apiserver" in str(p.args))
        os.killpg(server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(server.pid, signal.SIGCONT)

    def can_move(self) -> bool:
        """Whether the programs that `set_in_motion` starts are there."""
        return all((self.binaries / name).exists() for name in _MOVERS)

    def set_in_motion(self) -> None:
        """Run Deployments' controllers, the scheduler, and a kubelet that pretends, on every Node object (kwok)."""
        config = str(self.kubeconfig())
        self.control("deployment", "replicaset", "garbage-collector", "disruption")
        self._run("kube-scheduler", f"--kubeconfig={config}", *_FAST)
        kind = {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage"}
        of_pods = {"resourceRef": {"apiGroup": "v1", "kind": "Pod"}}
        stages = [
            {**kind, "metadata": {"name": f"pod-{i}"}, "spec": {**of_pods, **stage}} for i, stage in enumerate(_KUBELET)
        ]
        said = self._folder / "kwok.yaml"
        said.write_text("\n---\n".join(json.dumps(stage) for stage in stages))
        self._run("kwok", f"--kubeconfig={config}", f"--config={said}", "--manage-all-nodes=true")

    def control(self, *controllers: str, flags: Sequence[str] = ()) -> None:
        """Run some of Kubernetes' own controllers, for instance `disruption`."""
        wanted = ",".join(f"{name}-controller" for name in controllers)
        told = (f"--kubeconfig={self.kubeconfig()}", f"--controllers={wanted}")
        self._run("kube-controller-manager", *told, *_FAST, *flags)

    def _established(self, name: str) -> bool:
        # A definition's first status says `conditions: null`, until a controller of the server has seen it.
        conditions = (self.call("GET", f"{_CRDS}/{name}").get("status") or {}).get("conditions") or ()
        found = {c["type"]: c for c in conditions}
        assert found.get("NonStructuralSchema", {}).get("status") != "True", found
        return bool(found.get("Established", {}).get("status") == "True")

    def kubectl(self, *args: str) -> str:
        """Standard output of kubectl as administrator; raises CalledProcessError."""
        command = [str(self.binaries / "kubectl"), f"--kubeconfig={self.kubeconfig()}", *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout  # noqa: S603

    def audited(self) -> Iterator[Mapping[str, Any]]:
        """The audit events of the user `OPERATOR`, oldest first."""
        if not self.audit_log.exists():
            return
        whole, _, _ = self.audit_log.read_text().rpartition("\n")
        for line in whole.splitlines():
            event = json.loads(line)
            if event["user"]["username"] == OPERATOR:
                yield event

    def _start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.authority)
        served = authority.issue_cert("127.0.0.1", "localhost")
        served.private_key_pem.write_to_path(self._folder / "api.key")
        served.cert_chain_pems[0].write_to_path(self._folder / "api.crt")
        self._write_keys()
        client, peer, port = (_free_port() for _ in range(3))
        etcd = self._etcd = f"http://127.0.0.1:{client}"
        self._run(
            "etcd",
            f"--data-dir={self._folder}/etcd",
            "--unsafe-no-fsync",
            "--log-level=error",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
        )
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--secure-port={port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--tls-cert-file={self._folder}/api.crt",
            f"--tls-private-key-file={self._folder}/api.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={self._folder}/accounts.key",
            f"--service-account-key-file={self._folder}/accounts.pub",
            f"--token-auth-file={self._folder}/tokens.csv",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={self._folder}/audit.yaml",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-maxsize=10000",  # one that is rotated counts nothing from before
            "--endpoint-reconciler-type=none",
            "--profiling=false",
        )
        self.server = f"https://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {self._admin}"}
        self._client = httpx.Client(
            base_url=self.server, headers=headers, verify=_context(self.authority), timeout=60.0
        )
        self._until_ready()

    def _write_keys(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        secret, public = serialization.NoEncryption(), key.public_key()
        form = serialization.PrivateFormat.TraditionalOpenSSL
        (self._folder / "accounts.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, secret))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        (self._folder / "accounts.pub").write_bytes(public.public_bytes(serialization.Encoding.PEM, spki))
        tokens = [f'{self._admin},admin,admin,"system:masters"', f"{self._operator},{OPERATOR},{OPERATOR}"]
        (self._folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        rules = [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}]
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
        (self._folder / "audit.yaml").write_text(json.dumps(policy))

    def _run(self, name: str, *args: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _TETHERED, str(os.getpid()), str(self.binaries / name), *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        self._processes.append(process)

    def _until_ready(self) -> None:
        deadline_s = time.monotonic() + _START_LIMIT_S
        while True:
            ended = [p for p in self._processes if p.poll() is not None]
            if ended or time.monotonic() > deadline_s:
                logs = "\n".join(
                    f"{p.name}: {p.read_text(errors='replace')[-2000:]}" for p in self._folder.glob("*.log")
                )
                raise RuntimeError(f"the control plane did not start:\n{logs}")
            with contextlib.suppress(httpx.TransportError):
                if self.ask("GET", "/readyz").status_code == 200:
                    return
            time.sleep(_POLL_S)

    def _stop(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        shutil.rmtree(self._folder / "etcd", ignore_errors=True)


def _context(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
