"""What an attention shard, or a unified engine, is told by its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from katsura.domain.ids import DeploymentName
from katsura.domain.shape import DType, Numerics
from katsura.domain.units import MIB
from katsura.rpc.env import Env
from katsura.rpc.serve import ServeConfig


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """Both processes of a shard read the same.

    Attributes:
        serve: what every served process is told.
        deployment: what it serves; aliases: other names of it.
        model_path: folder of weights, tokenizer and template.
        kernels_path: kernel plan that the deployment ships; absent: the one kept beside the weights.
        dtype: of weights and KV; numerics: what the revision promises.
        ffn_slices: slices of a dense FFN; ffn_groups: reduction groups.
        context_tokens: prompt and answer together; 0: what the model was trained for.
        kv_bytes: memory of the arena; page_tokens: slots of a page.
        step_tokens: tokens of one step.
        running_max: sequences in the batch; waiting_max: sequences that wait; sequences_max: all of them.
        keep_s: how long an opened sequence is kept untouched.
        call_timeout_s: longest call, and the deadline of one without.
        unread_s: a stream unread for so long is cancelled.
        frame_timeout_s: longest time that a member may take for one frame.
        torch_threads: threads of the compute process.
        hints_url: hints store; empty: no leases, no events, no tables (a bench).
        socket_dir: where members of this machine have their shared-memory sockets.
    """

    serve: ServeConfig
    deployment: DeploymentName
    aliases: tuple[str, ...]
    model_path: Path
    kernels_path: Path | None
    dtype: DType
    numerics: Numerics
    ffn_slices: int
    ffn_groups: int
    context_tokens: int
    kv_bytes: int
    page_tokens: int
    step_tokens: int
    running_max: int
    waiting_max: int
    sequences_max: int
    keep_s: float
    call_timeout_s: float
    unread_s: float
    frame_timeout_s: float
    torch_threads: int
    hints_url: str
    socket_dir: str

    @classmethod
    def from_env(cls, environ: Mapping[str, str], role: str) -> ShardConfig:
        """Read the environment; raises InvalidArgumentError listing everything that is wrong with it."""
        env = Env(environ)
        kernels = env.text("KATSURA_KERNELS_PATH", "")
        store_url = env.text("KATSURA_STORE_URL", "")
        config = cls(
            serve=ServeConfig.from_env(env, role),
            deployment=DeploymentName(env.text("KATSURA_DEPLOYMENT")),
            aliases=env.names("KATSURA_MODEL_ALIASES"),
            model_path=Path(env.text("KATSURA_MODEL_PATH")),
            kernels_path=Path(kernels) if kernels else None,
            dtype=env.choice("KATSURA_DTYPE", DType, DType.F32),
            numerics=env.choice("KATSURA_NUMERICS", Numerics, Numerics.INVARIANT),
            ffn_slices=env.number("KATSURA_FFN_SLICES", 8, low=1),
            ffn_groups=env.number("KATSURA_FFN_GROUPS", 4, low=1),
            context_tokens=env.number("KATSURA_CONTEXT_TOKENS", 0),
            kv_bytes=env.number("KATSURA_KV_BYTES", 512 * MIB, low=1),
            page_tokens=env.number("KATSURA_PAGE_TOKENS", 16, low=1, high=1024),
            step_tokens=env.number("KATSURA_STEP_TOKENS", 256, low=1),
            running_max=env.number("KATSURA_RUNNING_MAX", 64, low=1),
            waiting_max=env.number("KATSURA_WAITING_MAX", 1024, low=1),
            sequences_max=env.number("KATSURA_SEQUENCES_MAX", 4096, low=1),
            keep_s=env.real("KATSURA_KEEP_S", 300.0),
            call_timeout_s=env.real("KATSURA_CALL_TIMEOUT_S", 600.0),
            unread_s=env.real("KATSURA_UNREAD_S", 30.0),
            frame_timeout_s=env.real("KATSURA_FRAME_TIMEOUT_S", 10.0),
            torch_threads=env.number("KATSURA_TORCH_THREADS", 1, low=1),
            hints_url=env.text("KATSURA_HINTS_URL", store_url) or store_url,
            socket_dir=env.text("KATSURA_SOCKET_DIR", ""),
        )
        env.finish()
        return config
