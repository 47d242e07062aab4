"""From resources to processes: which run, with which environment, on which address.

Pure: paths and secrets come in as text, `ProcessSpec`s go out; `up` starts them and `fleet` decides when.

    Split      store, [hints], memory x m, router x r, experts x e, attention x a, gateway
    Unified    store, [hints], memory x m, router x r, engine x u, gateway
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from katsura.domain.errors import InvalidArgumentError
from katsura.manifests.bundle import Bundle
from katsura.manifests.kinds import Engine, MemoryStore, Metadata, ModelDeployment
from katsura.manifests.stores import DeletionPolicy, Durability, MemoryStoreSpec

_GRACE_S = 30.0
_AFTER_DRAIN_S = 5.0
"""A process ends by itself after its drain; the signal that cannot be refused comes a little later."""
SOCKET_PATH_MAX = 107
"""Longest path of a unix socket on Linux, in bytes."""


class Role(StrEnum):
    """What a process is, in the order in which roles are ended from last to first."""

    STORE = "store"
    HINTS = "hints"
    MEMORY = "memory"
    ROUTER = "router"
    EXPERTS = "experts"
    ATTENTION = "attention"
    ENGINE = "engine"
    GATEWAY = "gateway"

    @property
    def is_store(self) -> bool:
        """Whether it is a server that we embed rather than a service of ours."""
        return self in (Role.STORE, Role.HINTS)


_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run lives.

    Attributes:
        run_dir: short folder of its sockets, ended with the run.
        data_dir: folder that outlives it.
        http_listen: `host:port` of the gateway.
        token: secret shared by the processes of this run.
        redis_url: a server to use instead of an embedded one; empty for none.
        log_format, log_level: of every process.
        metrics_port: first of the ports on which processes serve Prometheus metrics on loopback; 0 for none.
    """

    run_dir: str
    data_dir: str
    http_listen: str
    token: str
    redis_url: str = ""
    log_format: str = "human"
    log_level: str = "info"
    metrics_port: int = 0

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the gateway."""
        host = self.http_listen.rpartition(":")[0].strip("[]")
        return host == "localhost" or host == "::1" or host.startswith("127.")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to start.

    Attributes:
        module: run as `python -m module`; for a store, empty.
        env: its KATSURA_ variables, beside those that are made at each start (pipes).
        address: `unix:/path` or `host:port`, where it will serve.
        args: arguments of an embedded server.
        grace_s: how long it may drain.
    """

    name: str
    role: Role
    module: str
    address: str
    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    grace_s: float = 30.0

    @property
    def stage(self) -> int:
        """Stores start first, then everything else at once: services find each other in any order."""
        return 0 if self.role.is_store else 1

    @property
    def rank(self) -> int:
        """Ends before all lower ranks."""
        return _RANK[self.role]


@dataclass(frozen=True, slots=True)
class Layout:
    """Every process of a run, the stores that they use, and `notes`: what of the manifests has no effect here."""

    processes: tuple[ProcessSpec, ...]
    store_url: str
    hints_url: str
    durability: Durability
    notes: tuple[str, ...] = ()


def lay_out(bundle: Bundle, place: Place, model_folders: Mapping[str, str]) -> Layout:
    """Turn resources into processes.

    Args:
        bundle: what is wanted.
        place: where this run lives.
        model_folders: deployment name to its prepared folder.

    Raises:
        InvalidArgumentError: resources that one machine cannot run together.
    """
    if not bundle.deployments:
        raise InvalidArgumentError(
            "the manifests hold no ModelDeployment, so there is nothing to serve; add one (see deploy/samples)",
            field="kind",
        )
    external = [d.metadata.name for d in bundle.deployments if d.spec.engine is Engine.EXTERNAL]
    if external:
        raise InvalidArgumentError(
            f"{', '.join(external)}: engine external is a pod template and needs a cluster; use engine: native here",
            field="spec.engine",
        )
    store = the_store(bundle)
    return _Builder(bundle, store, place, model_folders).build()


def the_store(bundle: Bundle) -> MemoryStore:
    """The one MemoryStore of a local run; the default one where none is written.

    Raises:
        InvalidArgumentError: more than one.
    """
    if len(bundle.memory_stores) > 1:
        names = ", ".join(store.metadata.name for store in bundle.memory_stores)
        raise InvalidArgumentError(f"a local run has one MemoryStore, these files have {names}; keep one", field="kind")
    return bundle.memory_stores[0] if bundle.memory_stores else MemoryStore(Metadata("default"), MemoryStoreSpec())


def valkey_args(socket: str, folder: str, durability: Durability, evict_bytes: int | None = None) -> tuple[str, ...]:
    """Arguments of an embedded server: one unix socket that only its owner may open, no port, no dumps.

    Args:
        socket: path of the socket.
        folder: where the append-only file lies.
        durability: how often it is written through.
        evict_bytes: memory after which keys are evicted; None never evicts.
    """
    append, fsync = {
        Durability.STRICT: ("yes", "always"),
        Durability.RELAXED: ("yes", "everysec"),
        Durability.CACHE: ("no", "no"),
    }[durability]
    policy = "noeviction" if evict_bytes is None else "allkeys-lru"
    settings = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "dir": folder,
        "save": "",
        "appendonly": append,
        "appendfsync": fsync,
        "maxmemory": str(evict_bytes or 0),
        "maxmemory-policy": policy,
        "daemonize": "no",
    }
    return tuple(part for key, value in settings.items() for part in (f"--{key}", value))


class _Builder:
    def __init__(self, bundle: Bundle, store: MemoryStore, place: Place, model_folders: Mapping[str, str]) -> None:
        self._bundle = bundle
        self._spec = store.spec
        self._place = place
        self._folders = model_folders
        self._store_url = place.redis_url or (self._spec.redis.url if self._spec.redis else "")
        hints = self._spec.hints
        self._embeds_hints = hints is not None and hints.redis is None
        self._hints_url = hints.redis.url if hints and hints.redis else ""

    def build(self) -> Layout:
        stores = list(self._stores())
        urls = {spec.role: f"unix://{spec.address.removeprefix('unix:')}" for spec in stores}
        self._store_url = self._store_url or urls[Role.STORE]
        self._hints_url = self._hints_url or urls.get(Role.HINTS, self._store_url)
        services = [*self._memory(), *self._routers()]
        for deployment in self._bundle.deployments:
            services += self._model(deployment)
        gateway = self._gateway(services)
        if self._place.metrics_port:  # the gateway serves its own at /metrics
            services = [
                _with_env(spec, KATSURA_METRICS_LISTEN=f"127.0.0.1:{self._place.metrics_port + i}")
                for i, spec in enumerate(services)
            ]
        processes = (*stores, *services, gateway)
        return Layout(processes, self._store_url, self._hints_url, self._spec.durability, tuple(self._notes()))

    def _notes(self) -> Iterator[str]:
        for agent in self._bundle.agents:
            yield f"Agent {agent.metadata.name} was checked; nothing in a local run enforces its budgets"
        for deployment in self._bundle.deployments:
            spec = deployment.spec
            said = {"pod": spec.pod, "rollout": spec.rollout, "placement": spec.placement}
            here = [name for name, value in said.items() if value != type(value)()]
            if here:
                yield f"{deployment.metadata.name}: only a cluster heeds {', '.join(here)}"
        if self._spec.archive is not None:
            yield f"cold trees go to {self._place.data_dir}/cold; only a cluster heeds archive.pvc"
        if self._spec.deletion_policy is DeletionPolicy.DELETE:
            yield "deletionPolicy: Delete is for clusters; nothing here deletes what a run leaves"
        if self._spec.replicas > 1:
            yield "the gateway asks memory-0; the other memory processes serve gRPC clients"

    @property
    def _hints(self) -> dict[str, str]:
        return {"KATSURA_HINTS_URL": self._hints_url}

    def _stores(self) -> Iterator[ProcessSpec]:
        if not self._store_url:
            yield self._embedded(Role.STORE, self._spec.durability, None)
        if self._embeds_hints:
            assert self._spec.hints is not None
            yield self._embedded(Role.HINTS, Durability.CACHE, self._spec.hints.bytes)

    def _embedded(self, role: Role, durability: Durability, evict_bytes: int | None) -> ProcessSpec:
        address = self._address(role.value)
        folder = f"{self._place.data_dir}/{role.value}"
        args = valkey_args(address.removeprefix("unix:"), folder, durability, evict_bytes)
        return ProcessSpec(role.value, role, "", address, args=args)

    def _memory(self) -> Iterator[ProcessSpec]:
        for index in range(self._spec.replicas):
            own = {
                "KATSURA_STORE_DURABILITY": self._spec.durability.value,
                "KATSURA_STORE_REPLICAS": str(self._spec.redis.replicas if self._spec.redis else 0),
                "KATSURA_MEMORY_COLD_FOLDER": f"{self._place.data_dir}/cold",
            }
            if self._spec.archive is not None:
                own["KATSURA_MEMORY_COLD_AFTER_S"] = str(self._spec.archive.after_seconds)
            yield self._service(f"memory-{index}", Role.MEMORY, "katsura.memory", own)

    def _routers(self) -> Iterator[ProcessSpec]:
        # Routers serve every deployment; each may ask for some, the largest wish is met.
        for index in range(max(d.spec.replicas_of("router") for d in self._bundle.deployments)):
            yield self._service(f"router-{index}", Role.ROUTER, "katsura.router", self._hints)

    def _model(self, deployment: ModelDeployment) -> Iterator[ProcessSpec]:
        name, spec = deployment.metadata.name, deployment.spec
        env = {
            "KATSURA_DEPLOYMENT": name,
            "KATSURA_MODEL_PATH": self._folders[name],
            "KATSURA_MODEL_ALIASES": ",".join(spec.model.aliases),
            "KATSURA_DTYPE": spec.dtype.value,
            "KATSURA_NUMERICS": spec.numerics.value,
            "KATSURA_FFN_SLICES": str(spec.ffn.slices),
            "KATSURA_FFN_GROUPS": str(spec.ffn.groups),
            "KATSURA_SOCKET_DIR": f"{self._place.run_dir}/shm",
            **self._hints,
        }
        leads = env | {
            "KATSURA_KV_BYTES": str(spec.kv.bytes),
            "KATSURA_PAGE_TOKENS": str(spec.kv.page_tokens),
            "KATSURA_STEP_TOKENS": str(spec.batch.step_tokens),
        }
        if spec.model.context_tokens is not None:
            leads["KATSURA_CONTEXT_TOKENS"] = str(spec.model.context_tokens)
        prefix = f"{name}-" if len(self._bundle.deployments) > 1 else ""
        for role, wanted, module, own in (
            (Role.EXPERTS, "experts", "katsura.experts", env),
            (Role.ATTENTION, "attention", "katsura.attention", leads),
            (Role.ENGINE, "unified", "katsura.engine", leads),
        ):
            for index in range(spec.replicas_of(wanted)):
                grace_s = float(spec.drain_timeout_seconds)
                yield self._service(f"{prefix}{role.value}-{index}", role, module, own, grace_s)

    def _gateway(self, services: list[ProcessSpec]) -> ProcessSpec:
        place = self._place
        # One memory process answers the gateway; a cluster puts a Service in front of all of them.
        memory = next(spec.address for spec in services if spec.role is Role.MEMORY)
        env = self._shared("gateway", _GRACE_S) | {
            "KATSURA_HTTP_LISTEN": place.http_listen,
            "KATSURA_MEMORY_ADDRESS": memory,
            "KATSURA_ROUTER_ADDRESSES": ",".join(spec.address for spec in services if spec.role is Role.ROUTER),
            "KATSURA_ALLOW_KEYLESS": "true" if place.is_loopback else "false",
        }
        return ProcessSpec(
            "gateway", Role.GATEWAY, "katsura.gateway", place.http_listen, env, grace_s=_GRACE_S + _AFTER_DRAIN_S
        )

    def _service(
        self, name: str, role: Role, module: str, own: Mapping[str, str] | None = None, grace_s: float = _GRACE_S
    ) -> ProcessSpec:
        address = self._address(name)
        env = {
            **self._shared(name, grace_s),
            "KATSURA_LISTEN": address,
            **(own or {}),
        }
        return ProcessSpec(name, role, module, address, env, grace_s=grace_s + _AFTER_DRAIN_S)

    def _shared(self, name: str, grace_s: float) -> dict[str, str]:
        return {
            "KATSURA_INSTANCE_ID": name,
            "KATSURA_STORE_URL": self._store_url,
            "KATSURA_INTERNAL_TOKEN": self._place.token,
            "KATSURA_LOG_FORMAT": self._place.log_format,
            "KATSURA_LOG_LEVEL": self._place.log_level,
            "KATSURA_DRAIN_TIMEOUT_S": f"{grace_s:g}",
        }

    def _address(self, name: str) -> str:
        path = f"{self._place.run_dir}/{name}.sock"
        if len(path.encode()) > SOCKET_PATH_MAX:
            raise InvalidArgumentError(
                f"the socket path {path} is longer than {SOCKET_PATH_MAX} bytes; set TMPDIR to a shorter folder",
                field="TMPDIR",
            )
        return f"unix:{path}"


def _with_env(spec: ProcessSpec, **more: str) -> ProcessSpec:
    env = {**spec.env, **more}
    return ProcessSpec(spec.name, spec.role, spec.module, spec.address, env, spec.args, spec.grace_s)
