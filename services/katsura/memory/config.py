"""What the memory service is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.retention import KEEP_REVISIONS, Retention
from katsura.domain.trees import Durability
from katsura.domain.usage import Quotas
from katsura.manifests import stores
from katsura.rpc.env import Env
from katsura.rpc.serve import ServeConfig
from katsura.state.trees import Limits


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """Configuration of one memory process.

    Attributes:
        serve: what every process is told.
        store_url: durable Valkey or Redis.
        store_wait_s: how long to wait for the store at start.
        store_replicas: replicas that confirm a write before it is answered; 0 relies on the store's own disk.
        durability: what the store is to promise: a server that gives less is refused, a tree that asks for more is too.
            UNSPECIFIED takes what the server gives. settings_every_s: how often its settings are looked at again.
        message_file: gets why the process could not start, for whoever watches it from outside; empty: nowhere.
        limits: how much of each tree's past is kept for Watch and for repeated requests.
        heartbeat_s: silence after which a Watch says that it is alive.
        quotas: of tenants that have none of their own; 0 sets no limit.
        cold_folder: where cold trees go, shared by all memory processes of a store; empty: nowhere.
        cold_after_s: trees that nobody has written or brought back for so long are moved there; 0: only when asked.
        cold_every_s: how often they are looked for.
        collect_every_s: how often the service collects what retention does not keep; 0: only when asked.
        retention: of trees that have none of their own; None: nothing of theirs is forgotten by itself.
    """

    serve: ServeConfig
    store_url: str
    store_wait_s: float
    store_replicas: int
    durability: Durability
    settings_every_s: float
    message_file: str
    limits: Limits
    heartbeat_s: float
    quotas: Quotas
    cold_folder: str
    cold_after_s: float
    cold_every_s: float
    collect_every_s: float
    retention: Retention | None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> MemoryConfig:
        """Read KATSURA_ variables.

        Raises:
            InvalidArgumentError: lists every variable that is missing, malformed or unknown.
        """
        env = Env(environ)
        kept = Limits()
        config = cls(
            serve=ServeConfig.from_env(env, "memory"),
            store_url=env.text("KATSURA_STORE_URL"),
            store_wait_s=env.real("KATSURA_STORE_WAIT_S", 30.0),
            store_replicas=env.number("KATSURA_STORE_REPLICAS", 0, high=16),
            durability=_durability(env),
            settings_every_s=env.real("KATSURA_STORE_SETTINGS_EVERY_S", 10.0, low=0.1),
            message_file=env.text("KATSURA_MEMORY_MESSAGE_FILE", ""),
            limits=Limits(
                events=env.number("KATSURA_MEMORY_EVENTS_KEPT", kept.events, low=1),
                replays=env.number("KATSURA_MEMORY_REPLAYS_KEPT", kept.replays, low=1),
            ),
            heartbeat_s=env.real("KATSURA_MEMORY_HEARTBEAT_S", 15.0, low=0.1, high=3600.0),
            quotas=Quotas(
                trees=env.number("KATSURA_MEMORY_QUOTA_TREES", 0),
                nodes=env.number("KATSURA_MEMORY_QUOTA_NODES", 0),
                bytes=env.number("KATSURA_MEMORY_QUOTA_BYTES", 0),
                requests_per_minute=env.number("KATSURA_MEMORY_QUOTA_REQUESTS_PER_MINUTE", 0),
            ),
            cold_folder=env.text("KATSURA_MEMORY_COLD_FOLDER", ""),
            cold_after_s=env.real("KATSURA_MEMORY_COLD_AFTER_S", 0.0),
            cold_every_s=env.real("KATSURA_MEMORY_COLD_EVERY_S", 300.0, low=0.1),
            collect_every_s=env.real("KATSURA_MEMORY_COLLECT_EVERY_S", 60.0),
            retention=_retention(env),
        )
        env.finish()
        if config.cold_after_s and not config.cold_folder:
            raise InvalidArgumentError(
                "KATSURA_MEMORY_COLD_AFTER_S is set and KATSURA_MEMORY_COLD_FOLDER is not; name the folder",
                field="KATSURA_MEMORY_COLD_FOLDER",
            )
        return config


def _durability(env: Env) -> Durability:
    if not env.text("KATSURA_STORE_DURABILITY", ""):
        return Durability.UNSPECIFIED
    return Durability[env.choice("KATSURA_STORE_DURABILITY", stores.Durability, stores.Durability.STRICT).name]


def _retention(env: Env) -> Retention | None:
    abandoned = env.number("KATSURA_MEMORY_KEEP_ABANDONED", -1, low=-1)
    revisions = env.number("KATSURA_MEMORY_KEEP_REVISIONS", KEEP_REVISIONS, low=1)
    age_s = env.number("KATSURA_MEMORY_ABANDONED_TTL_S", 0)
    return Retention(abandoned, revisions, age_s) if abandoned >= 0 else None
