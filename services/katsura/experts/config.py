"""What an expert member is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from katsura.domain.ids import DeploymentName
from katsura.domain.shape import DType, Numerics
from katsura.rpc.env import Env
from katsura.rpc.serve import ServeConfig


@dataclass(frozen=True, slots=True)
class MemberConfig:
    """Both processes of a member read the same.

    Attributes:
        serve: what every served process is told.
        deployment: what it works for.
        model_path: folder of the weights.
        kernels_path: kernel plan that the deployment ships; absent: the one kept beside the weights.
        dtype: of weights; numerics: what the revision promises.
        ffn_slices: slices of a dense FFN; ffn_groups: reduction groups.
        capacity_bytes: memory that weights may take; 0: most of what this machine or container has free at start.
        torch_threads: threads of the compute process.
        hints_url: hints store; empty: no lease and no tables, Load alone decides (a bench).
        socket_dir: folder of the shared-memory socket; empty: none.
        data_listen: `host:port` of the TCP data plane (port 0: any free one); empty (`none` in the environment): none.
            Off loopback it needs TLS.
        data_host: host that shards reach it by, where `data_listen` names no address.
    """

    serve: ServeConfig
    deployment: DeploymentName
    model_path: Path
    kernels_path: Path | None
    dtype: DType
    numerics: Numerics
    ffn_slices: int
    ffn_groups: int
    capacity_bytes: int
    torch_threads: int
    hints_url: str
    socket_dir: str
    data_listen: str
    data_host: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> MemberConfig:
        """Read the environment; raises InvalidArgumentError listing everything that is wrong with it."""
        env = Env(environ)
        kernels = env.text("KATSURA_KERNELS_PATH", "")
        store_url = env.text("KATSURA_STORE_URL", "")
        data_listen = env.text("KATSURA_DATA_LISTEN", "127.0.0.1:0")
        env.names("KATSURA_MODEL_ALIASES")  # told to every process of a deployment; only those that lead use it
        config = cls(
            serve=ServeConfig.from_env(env, "experts"),
            deployment=DeploymentName(env.text("KATSURA_DEPLOYMENT")),
            model_path=Path(env.text("KATSURA_MODEL_PATH")),
            kernels_path=Path(kernels) if kernels else None,
            dtype=env.choice("KATSURA_DTYPE", DType, DType.F32),
            numerics=env.choice("KATSURA_NUMERICS", Numerics, Numerics.INVARIANT),
            ffn_slices=env.number("KATSURA_FFN_SLICES", 8, low=1),
            ffn_groups=env.number("KATSURA_FFN_GROUPS", 4, low=1),
            capacity_bytes=env.number("KATSURA_CAPACITY_BYTES", 0),
            torch_threads=env.number("KATSURA_TORCH_THREADS", 1, low=1),
            hints_url=env.text("KATSURA_HINTS_URL", store_url) or store_url,
            socket_dir=env.text("KATSURA_SOCKET_DIR", ""),
            data_listen="" if data_listen == "none" else data_listen,
            data_host=env.text("KATSURA_DATA_HOST", ""),
        )
        env.finish()
        return config
