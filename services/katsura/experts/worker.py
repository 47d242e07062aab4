"""Composition root of the compute process: `python -m katsura.experts.worker FD` joins the pipe at descriptor FD.

The RPC process starts it with its own environment (`wire.pipe.spawn`). It is single-threaded from here on.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path

import torch

from katsura.domain.cost import FrameCost
from katsura.domain.errors import InternalError, InvalidArgumentError, KatsuraError
from katsura.domain.leases import revision_id
from katsura.domain.shape import layout_for
from katsura.domain.units import MIB
from katsura.experts import messages
from katsura.experts.canary import fingerprint, measure
from katsura.experts.compute import Member
from katsura.experts.config import MemberConfig
from katsura.experts.frames import Frames, Identity
from katsura.experts.groups import Groups, Holdings, group_bytes
from katsura.telemetry import setup
from katsura.weights.kernels import kernel_plan
from katsura.weights.load import read_config
from katsura.weights.manifest import weights_digest
from katsura.weights.reader import Checkpoint
from katsura.wire import shm, tcp, tls
from katsura.wire.header import WIRE_VERSION
from katsura.wire.pipe import PeerDiedError, Pipe
from katsura.wire.server import Server
from katsura.wire.transport import Limits

LIMITS = Limits(credits=8, request_bytes=64 * MIB, reply_bytes=256 * MIB)
"""The most that one shard may ask for; memory is taken as it is used."""
_CAPACITY_SHARE = 0.8


def main() -> None:
    """Open the model, greet, serve until the RPC process is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever owns the pipe decides when this process ends
    pipe = Pipe.inherited(int(sys.argv[1]))
    try:
        _serve(pipe, MemberConfig.from_env(os.environ))
    except PeerDiedError:
        return
    except KatsuraError as error:
        pipe.send(messages.write(messages.Failed.of(0, error)))


def _serve(pipe: Pipe, config: MemberConfig) -> None:
    setup.configure("experts-compute", config.serve.instance_id, os.environ)
    torch.set_num_threads(config.torch_threads)
    start = messages.read(pipe.receive(None) or {})
    if not isinstance(start, messages.Start):
        raise InternalError("the RPC process must say first which life of the member this is")
    holdings = _open(config)
    shape, layout, kernels = holdings.config.shape, holdings.layout, holdings.kernels
    digest = weights_digest(config.model_path)
    identity = Identity(
        start.incarnation,
        digest,
        revision_id(digest, config.dtype, config.numerics, layout, WIRE_VERSION),
        fingerprint(digest, shape, layout, kernels),
        measure(shape, layout, kernels, time.perf_counter),
        config.numerics,
    )
    with Checkpoint(config.model_path) as checkpoint:
        groups = Groups(holdings, checkpoint)
        frames = Frames(identity, groups, time.monotonic)
        server = Server(LIMITS, frames.admit)
        endpoints = _listen(server, config)
        pipe.send(messages.write(_hello(identity, holdings, endpoints)))
        gc.freeze()  # what is here by now stays: no collection needs to walk it
        try:
            Member(pipe, frames, groups, time.monotonic).run(server)
        finally:
            server.close()


def _open(config: MemberConfig) -> Holdings:
    model = read_config(config.model_path)
    layout = layout_for(model.shape, config.ffn_slices, config.ffn_groups)
    kernels = kernel_plan(
        config.model_path, model.shape, layout, config.dtype, config.numerics, now=time.perf_counter,
        fixed=config.kernels_path,
    )  # fmt: skip
    capacity_bytes = config.capacity_bytes or int(_CAPACITY_SHARE * free_bytes())
    return Holdings(config.model_path, model, layout, kernels, capacity_bytes)


def _hello(identity: Identity, holdings: Holdings, endpoints: tuple[str, ...]) -> messages.Hello:
    cost: FrameCost = identity.cost
    return messages.Hello(
        weights_digest=identity.weights_digest,
        fingerprint=identity.fingerprint,
        layer_count=holdings.config.shape.layer_count,
        layout=holdings.layout,
        group_bytes=group_bytes(holdings.config.shape, holdings.layout, holdings.kernels),
        unit_cost_s=cost.unit_s,
        token_cost_s=cost.token_s,
        capacity_bytes=holdings.capacity_bytes,
        data_endpoints=endpoints,
    )


def _listen(server: Server, config: MemberConfig) -> tuple[str, ...]:
    endpoints = []
    if config.socket_dir:
        folder = Path(config.socket_dir)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = str(folder / f"{config.serve.instance_id}.sock")
        shm.listen(server, path)
        endpoints.append(f"shm:{path}")
    if config.data_listen:
        host, _, port = config.data_listen.rpartition(":")
        if not (host and port.isdecimal()):
            raise InvalidArgumentError(
                f"KATSURA_DATA_LISTEN: expected host:port or none, got {config.data_listen!r}",
                field="KATSURA_DATA_LISTEN",
            )
        files = config.serve.tls
        contexts = tls.server_contexts(files.certificate, files.key, files.authority) if files else None
        bound = tcp.listen(server, host.strip("[]"), int(port), contexts)
        endpoints.append(f"tcp:{config.data_host or host}:{bound}")
    return tuple(endpoints)


def free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this machine has free, or that its container may still take."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))


if __name__ == "__main__":
    main()
