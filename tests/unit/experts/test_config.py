"""A member's environment is read once, and every mistake in it is named together."""

from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, Numerics
from katsura.experts.config import MemberConfig

LEAST = {"KATSURA_INTERNAL_TOKEN": "t", "KATSURA_DEPLOYMENT": "demo", "KATSURA_MODEL_PATH": "/models/demo"}


def test_defaults_make_a_member_of_one_machine() -> None:
    config = MemberConfig.from_env(LEAST | {"KATSURA_STORE_URL": "unix:///s"})
    assert (config.dtype, config.numerics, config.ffn_slices, config.ffn_groups) == (
        DType.F32,
        Numerics.INVARIANT,
        8,
        4,
    )
    assert (config.hints_url, config.socket_dir, config.data_listen) == ("unix:///s", "", "127.0.0.1:0")
    assert config.kernels_path is None


def test_everything_can_be_said() -> None:
    config = MemberConfig.from_env(
        LEAST
        | {
            "KATSURA_HINTS_URL": "redis://h:1/0", "KATSURA_STORE_URL": "unix:///s", "KATSURA_DTYPE": "bf16",
            "KATSURA_CAPACITY_BYTES": "77", "KATSURA_SOCKET_DIR": "/run/k", "KATSURA_DATA_LISTEN": "none",
            "KATSURA_KERNELS_PATH": "/k.json", "KATSURA_MODEL_ALIASES": "a,b", "KATSURA_DATA_HOST": "10.0.0.7",
        }
    )  # fmt: skip
    assert (config.hints_url, config.dtype, config.capacity_bytes) == ("redis://h:1/0", DType.BF16, 77)
    assert (config.socket_dir, config.data_listen, config.data_host) == ("/run/k", "", "10.0.0.7")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        MemberConfig.from_env({"KATSURA_DTYPE": "f16", "KATSURA_CAPACITY": "1", "KATSURA_FFN_GROUPS": "0"})
    for name in ("INTERNAL_TOKEN", "DEPLOYMENT", "MODEL_PATH", "DTYPE", "FFN_GROUPS", "CAPACITY: unknown"):
        assert f"KATSURA_{name}" in caught.value.message
