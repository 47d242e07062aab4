"""What the operator is told by its environment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.calibration import read_devices
from katsura.rpc.env import Env
from katsura.wire.header import WIRE_VERSION
from katsura_operator.core.settings import Settings


class Inventory(StrEnum):
    """Where plans take their nodes from."""

    NODES = "nodes"
    DECLARED = "declared"


class Certificates(StrEnum):
    """Who keeps the Secret `katsura-tls`."""

    OWN = "own"
    """This operator, by an authority of its own."""
    GIVEN = "given"
    """Somebody else, such as cert-manager."""


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Configuration of one operator process.

    Attributes:
        settings: what decisions may read.
        namespaces: which are served; empty for all.
        certificates: who keeps the Secret that pods mount.
        identity: who holds the lease.
        listen: `host:port` of health and metrics.
        kubeconfig: how to reach the API server; empty in a pod.
        internal_token: lets it tell pods to drain; without it SIGTERM alone does.
        resync_s: longest time between two passes. solve_limit_s: for one decision, its solve included.
        calibration_file: what `katsura calibrate` wrote; empty for none.
    """

    settings: Settings
    namespaces: tuple[str, ...]
    certificates: Certificates
    identity: str
    listen: str
    kubeconfig: str
    internal_token: str = field(repr=False)
    resync_s: float
    solve_limit_s: float
    calibration_file: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> OperatorConfig:
        """Read KATSURA_OPERATOR_ and OTEL_ variables, KATSURA_INTERNAL_TOKEN and KUBECONFIG.

        Raises:
            InvalidArgumentError: lists every variable that is missing, malformed or unknown.
        """
        env = Env(environ)
        own = env.text("KATSURA_OPERATOR_NAMESPACE")
        names = env.names("KATSURA_OPERATOR_NAMESPACES", (own,))
        fs_group = env.number("KATSURA_OPERATOR_FS_GROUP", -1, low=-1)
        settings = Settings(
            namespace=own,
            services_image=env.text("KATSURA_OPERATOR_SERVICES_IMAGE"),
            engine_image=env.text("KATSURA_OPERATOR_ENGINE_IMAGE"),
            pull_policy=env.text("KATSURA_OPERATOR_PULL_POLICY", "IfNotPresent"),
            pull_secrets=env.names("KATSURA_OPERATOR_PULL_SECRETS"),
            secret=env.text("KATSURA_OPERATOR_SECRET", "katsura"),
            nodes_observed=env.choice("KATSURA_OPERATOR_INVENTORY", Inventory, Inventory.DECLARED) is Inventory.NODES,
            overcommit=env.real("KATSURA_OPERATOR_OVERCOMMIT", 1.0, low=1.0, high=100.0),
            wire_version=WIRE_VERSION,
            fs_group=None if fs_group < 0 else fs_group,
            dns=env.names("KATSURA_OPERATOR_DNS"),
            tracing=tuple(f"{name}={environ[name]}" for name in sorted(environ) if name.startswith("OTEL_")),
        )
        made = cls(
            settings=settings,
            namespaces=() if "*" in names else names,
            certificates=env.choice("KATSURA_OPERATOR_CERTIFICATES", Certificates, Certificates.OWN),
            identity=env.text("KATSURA_OPERATOR_IDENTITY", socket.gethostname()),
            listen=env.text("KATSURA_OPERATOR_LISTEN", "0.0.0.0:9091"),
            kubeconfig=environ.get("KUBECONFIG", ""),
            internal_token=env.text("KATSURA_INTERNAL_TOKEN", ""),
            resync_s=env.real("KATSURA_OPERATOR_RESYNC_S", 60.0, low=1.0),
            calibration_file=env.text("KATSURA_OPERATOR_CALIBRATION_FILE", ""),
            solve_limit_s=env.real("KATSURA_OPERATOR_SOLVE_LIMIT_S", 600.0, low=1.0),
        )
        env.finish()
        if not made.listen.rpartition(":")[2].isdigit():
            raise InvalidArgumentError(
                f"KATSURA_OPERATOR_LISTEN: expected host:port, got {made.listen!r}", field="KATSURA_OPERATOR_LISTEN"
            )
        return made

    def settings_with_calibration(self) -> Settings:
        """`settings` with what the file of measurements says.

        Raises:
            InvalidArgumentError: it cannot be read, or `katsura calibrate` did not write it.
        """
        if not self.calibration_file:
            return self.settings
        try:
            text = Path(self.calibration_file).read_text("utf-8")
            read_devices(text)
        except (OSError, UnicodeDecodeError, InvalidArgumentError) as error:
            raise InvalidArgumentError(
                f"KATSURA_OPERATOR_CALIBRATION_FILE: {self.calibration_file}: {error}",
                field="KATSURA_OPERATOR_CALIBRATION_FILE",
            ) from error
        return replace(self.settings, calibration=text)
