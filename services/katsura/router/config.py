"""What the router is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from katsura.rpc.env import Env
from katsura.rpc.serve import ServeConfig


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Configuration of one router process.

    Attributes:
        serve: what every process is told.
        hints_url: Valkey or Redis with leases, events and tables.
        prepare_patience_s: how long a member may load nothing before an expert table is made without it.
        store_wait_s: how long to wait for the store at start.
    """

    serve: ServeConfig
    hints_url: str
    prepare_patience_s: float = 60.0
    store_wait_s: float = 30.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> RouterConfig:
        """Read KATSURA_ variables.

        Raises:
            InvalidArgumentError: lists every variable that is missing, malformed or unknown.
        """
        env = Env(environ)
        serve = ServeConfig.from_env(env, "router")
        durable = env.text("KATSURA_STORE_URL", "")
        config = cls(
            serve=serve,
            # Required only where there is no durable store to play both parts.
            hints_url=env.text("KATSURA_HINTS_URL", durable or None),
            prepare_patience_s=env.real("KATSURA_ROUTER_PREPARE_PATIENCE_S", 60.0, low=0.1),
            store_wait_s=env.real("KATSURA_STORE_WAIT_S", 30.0),
        )
        env.finish()
        return config
