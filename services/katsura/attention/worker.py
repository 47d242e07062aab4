"""Composition root of a compute process: `python -m katsura.attention.worker FD` joins the pipe at descriptor FD.

A shard's RPC process starts it with its own environment (`wire.pipe.spawn`). The engine room starts the same with
experts in this process (`katsura.engine.worker`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import torch

from katsura.attention import messages
from katsura.attention.compute import Compute, MemberPool
from katsura.attention.config import ShardConfig
from katsura.attention.core.intake import Intake
from katsura.attention.core.schedule import Limits
from katsura.attention.pool import make_pool
from katsura.attention.runner import Ffn, Model, Runner
from katsura.domain.errors import InvalidArgumentError, KatsuraError, Reason
from katsura.domain.shape import layout_for
from katsura.domain.units import human_bytes
from katsura.model.kv import KvArena
from katsura.telemetry import setup
from katsura.weights.load import read_config
from katsura.weights.manifest import weights_digest
from katsura.wire.pipe import PeerDiedError, Pipe

MakeFfn = Callable[[ShardConfig, Model], tuple[Ffn, MemberPool | None]]
"""How the experts are reached: makes what the runner calls, and the pool where there is one."""


def main(role: str, make_ffn: MakeFfn) -> None:
    """Load, greet, compute until the RPC process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever owns the pipe decides when this process ends
    pipe = Pipe.inherited(int(sys.argv[1]))
    try:
        _serve(pipe, ShardConfig.from_env(os.environ, role), role, make_ffn)
    except PeerDiedError:
        return
    except KatsuraError as error:
        pipe.send(messages.write_failure(error))


def _serve(pipe: Pipe, config: ShardConfig, role: str, make_ffn: MakeFfn) -> None:
    setup.configure(f"{role}-compute", config.serve.instance_id, os.environ)
    torch.set_num_threads(config.torch_threads)
    layout = layout_for(read_config(config.model_path).shape, config.ffn_slices, config.ffn_groups)
    model = Model.open(config.model_path, layout, config.dtype, config.numerics, config.kernels_path)
    limits = limits_of(config, model)
    arena = KvArena(model.config, limits.page_count, limits.page_tokens, config.dtype)
    ffn, pool = make_ffn(config, model)
    runner = Runner(model.config, model.decoder(arena), arena, ffn)
    pipe.send(
        messages.write_hello(
            messages.Hello(
                weights_digest(model.folder), model.config.shape, layout, limits.length_max, limits.page_count
            )
        )
    )
    Compute(pipe, Intake(limits), runner, pool, time.monotonic).run()


def limits_of(config: ShardConfig, model: Model) -> Limits:
    """What the configured memory can carry. Raises InvalidArgumentError where that is nothing."""
    page_bytes = KvArena.page_bytes(model.config, config.page_tokens, config.dtype)
    page_count = config.kv_bytes // page_bytes
    if page_count < 2:
        raise InvalidArgumentError(
            f"KATSURA_KV_BYTES: {human_bytes(config.kv_bytes)} hold fewer than two pages of {human_bytes(page_bytes)}",
            reason=Reason.KV_EXHAUSTED,
            field="KATSURA_KV_BYTES",
        )
    shape = model.config.shape
    return Limits(
        page_count=page_count,
        page_tokens=config.page_tokens,
        step_tokens=config.step_tokens,
        context_tokens=min(config.context_tokens or shape.context_length, shape.context_length),
        vocab_size=shape.vocab_size,
        running_max=config.running_max,
        waiting_max=config.waiting_max,
        sequences_max=config.sequences_max,
        keep_s=config.keep_s,
    )


if __name__ == "__main__":
    main("attention", make_pool)
