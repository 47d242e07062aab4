from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

from katsura.domain.errors import DataLossError, NotFoundError
from katsura.domain.shape import DType, FfnLayout, Numerics
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan, LinearBackend, LinearKernel
from katsura.weights.load import load_attention, load_group, read_config
from katsura.weights.reader import Checkpoint

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
FFN = re.compile(r"\.mlp\.(gate|up|down)_proj|\.experts\.")


class AnyWidth(dict[tuple[int, int], LinearKernel]):
    def __missing__(self, key: tuple[int, int]) -> LinearKernel:
        return LinearKernel(LinearBackend.PLAIN)

    def get(self, key: tuple[int, int], default: object = None) -> LinearKernel:  # type: ignore[override]
        return self[key]


KERNELS = KernelPlan(DType.F32, Numerics.FAST, AnyWidth(), AttentionKernel(AttentionBackend.MATMUL))


def saved(model: PreTrainedModel, folder: Path, **options: str) -> Path:
    torch.manual_seed(0)
    model.init_weights()
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "llama")


@pytest.fixture
def mixtral(tmp_path: Path) -> Path:
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    return saved(MixtralForCausalLM(config), tmp_path / "mixtral")


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_an_attention_shard_reads_every_weight_but_those_of_the_ffn(
    family: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(family)
    with Checkpoint(folder) as checkpoint:
        load_attention(checkpoint, read_config(folder), KERNELS)
        read = set(checkpoint.bytes_read)
        assert read == {name for name in checkpoint.names() if not FFN.search(name)}


@pytest.mark.parametrize(("family", "units"), [("llama", 8), ("mixtral", 4)])
def test_a_member_reads_its_share_of_one_layers_ffn_and_nothing_else(
    family: str, units: int, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(family)
    with Checkpoint(folder) as checkpoint:
        group = load_group(checkpoint, read_config(folder), FfnLayout(units, 4), 1, 2, KERNELS)
        assert all(name.startswith("model.layers.1.") and FFN.search(name) for name in checkpoint.bytes_read)
        share = 3 * 32 * 48 * 4 // (4 if family == "llama" else 1)
        assert sum(checkpoint.bytes_read.values()) == share == group.size_bytes


def test_groups_of_a_dense_ffn_put_together_are_the_whole_matrix(llama: Path) -> None:
    config, identity = read_config(llama), torch.eye(32)
    with Checkpoint(llama) as checkpoint:
        groups = [load_group(checkpoint, config, FfnLayout(8, 4), 0, g, KERNELS) for g in range(4)]
        sizes = set(checkpoint.bytes_read.values())
    gate = torch.cat([group.blocks[0].gate_up(identity)[:, :12] for group in groups], 1).T
    expected = LlamaForCausalLM.from_pretrained(llama).model.layers[0].mlp.gate_proj.weight
    assert torch.equal(gate, expected)
    assert sizes == {32 * 48 * 4}


def test_fused_experts_are_read_as_the_same_weights(mixtral: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    fused = tmp_path / "fused"
    fused.mkdir()
    (fused / "config.json").write_bytes((mixtral / "config.json").read_bytes())
    memory = MixtralForCausalLM.from_pretrained(mixtral).state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj" in memory
    save_file({name: tensor.contiguous() for name, tensor in memory.items()}, fused / "model.safetensors")
    config, layout, identity = read_config(mixtral), FfnLayout(4, 2), torch.eye(32)
    with Checkpoint(mixtral) as single, Checkpoint(fused) as together:
        for group in range(2):
            ours = [load_group(source, config, layout, 1, group, KERNELS) for source in (single, together)]
            assert ours[0].expert_ids == ours[1].expert_ids
            for one, other in zip(ours[0].blocks, ours[1].blocks, strict=True):
                assert torch.equal(one.gate_up(identity), other.gate_up(identity))
                assert torch.equal(one.down(torch.eye(48)), other.down(torch.eye(48)))
        assert sum(together.bytes_read.values()) == sum(single.bytes_read.values())
        load_attention(together, config, KERNELS)


def test_a_checkpoint_in_several_files_loads_like_one(llama: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(parts, max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 1
    with Checkpoint(llama) as one, Checkpoint(parts) as many:
        whole = [load_attention(source, read_config(llama), KERNELS) for source in (one, many)]
        assert one.bytes_read == many.bytes_read
    assert torch.equal(whole[0].embedding, whole[1].embedding)


def test_weights_of_another_configuration_are_data_loss(llama: Path) -> None:
    path = llama / "config.json"
    path.write_text(path.read_text().replace('"intermediate_size": 48', '"intermediate_size": 64'))
    with Checkpoint(llama) as checkpoint, pytest.raises(DataLossError, match="do not belong together"):
        load_group(checkpoint, read_config(llama), FfnLayout(1, 1), 0, 0, KERNELS)


def test_a_folder_without_or_with_a_broken_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_config(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DataLossError):
            read_config(tmp_path)
