"""What the command line tells a process is what that process reads: every sample, every role, its own `from_env`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from katsura.attention.config import ShardConfig
from katsura.cli.core.layout import Place, ProcessSpec, Role, lay_out
from katsura.experts.config import MemberConfig
from katsura.gateway.config import GatewayConfig
from katsura.manifests.bundle import read_manifests
from katsura.memory.config import MemoryConfig
from katsura.router.config import RouterConfig

SAMPLES = sorted((Path(__file__).parents[2] / "deploy" / "samples").glob("*.yaml"))
PIPES = {"KATSURA_SUPERVISOR_FD": "3", "KATSURA_READY_FD": "4"}
READERS: Mapping[Role, Callable[[Mapping[str, str]], object]] = {
    Role.MEMORY: MemoryConfig.from_env,
    Role.ROUTER: RouterConfig.from_env,
    Role.EXPERTS: MemberConfig.from_env,
    Role.ATTENTION: lambda env: ShardConfig.from_env(env, "attention"),
    Role.ENGINE: lambda env: ShardConfig.from_env(env, "engine"),
    Role.GATEWAY: GatewayConfig.from_env,
}


def specs(sample: Path, metrics_port: int = 0) -> list[ProcessSpec]:
    bundle = read_manifests([(sample.name, sample.read_text("utf-8"))])
    place = Place("/run/k", "/data", "127.0.0.1:8080", "s3cret", metrics_port=metrics_port)
    layout = lay_out(bundle, place, {d.metadata.name: "/models/m" for d in bundle.deployments})
    return [spec for spec in layout.processes if not spec.role.is_store]


@pytest.mark.parametrize("metrics_port", [0, 9100])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_process_of_a_sample_reads_its_environment(sample: Path, metrics_port: int) -> None:
    for spec in specs(sample, metrics_port):
        READERS[spec.role]({**spec.env, **PIPES})


def test_what_a_manifest_says_is_what_a_shard_and_a_member_read() -> None:
    sample = next(path for path in SAMPLES if path.stem == "custom")
    by_role = {spec.role: spec for spec in specs(sample)}
    shard = ShardConfig.from_env(by_role[Role.ATTENTION].env, "attention")
    member = MemberConfig.from_env(by_role[Role.EXPERTS].env)
    assert (shard.kv_bytes, shard.page_tokens, shard.step_tokens, shard.context_tokens) == (4 << 30, 32, 512, 8192)
    assert (shard.deployment, shard.aliases) == ("my-model", ("my-model-latest",))
    for config in (shard, member):
        assert (config.dtype, config.numerics, config.ffn_slices, config.ffn_groups) == ("bf16", "fast", 16, 8)
        assert config.hints_url == "redis://localhost:6379/0"
