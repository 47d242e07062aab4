"""The measured serving points inside the PyPI package aiconfigurator-core (Apache-2.0), read as points of our model.

Split before the first fit: rows whose source is the pledged dump are never fitted on; of the rest a fifth, by a hash of
the row's id, is held out.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from katsura.placement import catalogue
from katsura.placement.card import ModelCard, read_card
from katsura.placement.cost import Layout, Load, Precision, decode_terms, prefill_floor_s, prefill_ring_s
from katsura.placement.fit import Point

PLEDGED = "db-dump/2026-04-27"
SYSTEMS = {
    "b200_sxm": ("B200", 8),
    "h100_sxm": ("H100", 8),
    "h200_sxm": ("H200", 8),
    "b300_sxm": ("B300", 8),
    "gb200": ("GB200", 72),
    "gb300": ("GB300", 72),
}
CONFIGS = {
    "deepseek-ai/DeepSeek-V3": "deepseek-ai--DeepSeek-R1",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-ai--DeepSeek-R1",
    "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-ai--DeepSeek-R1",
    "zhipuai/GLM-5": "zai-org--GLM-5",
    "meta-llama/Llama-3.1-70B": "meta-llama--Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama--Meta-Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama--Meta-Llama-3.1-8B",
    "nvidia/Qwen3-32B-NVFP4": "Qwen--Qwen3-32B",
}


@dataclass(frozen=True)
class Row:
    """One published point. `measured` is equal for rows that publish the same measurement."""

    id: str
    model_path: str
    model: str
    system: str
    backend: str
    version: str
    precision: str
    modes: tuple[str, str]
    mode: str
    load: Load
    batch: float
    layout: Layout
    ttft_s: float
    point: Point
    prefill_floor_s: float
    prefill_ring_s: float
    workers_known: bool
    pledged: bool
    held: bool
    measured: tuple[str, ...]

    @property
    def devices(self) -> int:
        return self.layout.devices

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What a planner cannot choose: it ranks configurations within one group and load."""
        return self.model, self.system, self.backend, self.precision


def read_rows(folder: Path) -> list[Row]:
    cards: dict[str, tuple[ModelCard, int]] = {}
    with (folder / "systems" / "silicon_sample.csv").open() as file:
        return [row_of(entry, folder, cards) for entry in csv.DictReader(file)]


def card_of(model: str, folder: Path, cards: dict[str, tuple[ModelCard, int]]) -> tuple[ModelCard, int]:
    if model not in cards:
        name = CONFIGS.get(model, model.replace("/", "--"))
        config = json.loads((folder / "model_configs" / f"{name}_config.json").read_text())
        text = config.get("text_config", config)
        cards[model] = read_card(config, model), text["num_attention_heads"]
    return cards[model]


def precision_of(entry: dict[str, str]) -> Precision:
    gemm, moe = entry["gemm_quant_mode"], entry["moe_quant_mode"]
    if entry["model_path"] == "openai/gpt-oss-120b":  # published in mxfp4 experts and bf16 everything else
        arithmetic = "bf16" if entry["system"] in ("h100_sxm", "h200_sxm") else "fp4"
        return Precision(0.53, 2, 1, arithmetic)
    size = {"fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625, "int4_wo": 0.53, "": 2.0}
    arithmetic = {"nvfp4": "fp4", "": "bf16", "int4_wo": "bf16"}.get(moe, "fp8")
    return Precision(size[moe], size[gemm], 1 if arithmetic in ("fp8", "fp4") else 2, arithmetic)


def layout_of(entry: dict[str, str], side: str, heads: int, per_node: int) -> Layout:
    """The layout as it ran.

    Two of the files multiply tensor by expert parallelism where these cut the same devices: `..._tp8_ep8_...` is
    written down as 64 devices in an 8-GPU machine. The row's own id says how many there were; rows of the dump have no
    such id and are mended by the same pattern. `twins` counts how the mended rows agree with the other publications of
    the same measurements, which are right.
    """

    def count(key: str) -> int:
        return int(float(entry[side + key] or 1)) or 1

    tensor, data, experts = count("tp_size"), count("attention_dp_size"), count("moe_ep_size")
    recorded = tensor * data
    if not side:
        said = re.search(r"_tp(\d+)(?:_0)?_ep(\d+)", entry["id"])
        if said:
            recorded, experts = int(said[1]), int(said[2])
        elif entry["silicon_data_source"].startswith(PLEDGED) and recorded > 1:
            squared = math.isqrt(recorded) ** 2 == recorded
            if squared and (
                count("moe_tp_size") == experts == math.isqrt(recorded) or experts == recorded == tensor**2
            ):
                recorded = experts = math.isqrt(recorded)
        tensor = min(tensor, recorded)
        data = recorded // tensor
    if heads % tensor:  # heads cannot be cut that way: those ranks must be copies of attention
        tensor, data = 1, tensor * data
    return Layout(tensor, data, experts, per_node)


def row_of(entry: dict[str, str], folder: Path, cards: dict[str, tuple[ModelCard, int]]) -> Row:
    card, heads = card_of(entry["model_path"], folder, cards)
    device_name, per_node = SYSTEMS[entry["system"]]
    device = catalogue.built_in().named(device_name)
    side = "decode_" if entry["mode"] == "disagg" else ""
    layout = layout_of(entry, side, heads, per_node)
    said = re.search(r"concurrency=(\d+)", entry["silicon_data_source"])
    batch = float(said[1]) if said else float(entry[side + "batch_size"] or 1) * layout.data
    if side:
        batch /= max(1, int(float(entry["decode_num_workers"] or 1)))
    load, precision = Load(int(entry["isl"]), int(entry["osl"])), precision_of(entry)
    terms = decode_terms(card, device, precision, layout, batch, load)
    seconds = float(entry["silicon_tpot_ms"]) / 1e3
    shown = (f"{float(entry[f'silicon_{name}_ms']):.6g}" for name in ("tpot", "ttft"))
    return Row(
        id=entry["id"],
        model_path=entry["model_path"],
        model=f"{card.family}-{card.layers}",
        system=entry["system"],
        backend=entry["backend"],
        version=entry["backend_version"],
        precision=entry["precision"],
        modes=(entry["gemm_quant_mode"], entry["moe_quant_mode"]),
        mode=entry["mode"],
        load=load,
        batch=batch,
        layout=layout,
        ttft_s=float(entry["silicon_ttft_ms"]) / 1e3,
        point=Point(terms.decoding if side else terms, seconds, batch, load.context),
        prefill_floor_s=prefill_floor_s(card, device, precision, layout, load),
        prefill_ring_s=prefill_ring_s(card, device, layout, load),
        workers_known=bool(entry["decode_num_workers"]),
        pledged=entry["silicon_data_source"].startswith(PLEDGED),
        held=int(hashlib.sha256(entry["id"].encode()).hexdigest(), 16) % 5 == 0,
        measured=(entry["system"], entry["backend"], entry["isl"], entry["osl"], *shown),
    )


def train(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.mode == "agg" and not r.pledged and not r.held]


def twins(rows: Sequence[Row]) -> tuple[int, int]:
    """Aggregated measurements that were published more than once, and how many of them with one layout."""
    found: dict[tuple[str, ...], set[Layout]] = defaultdict(set)
    times: dict[tuple[str, ...], int] = defaultdict(int)
    for r in rows:
        if r.mode == "agg":
            key = (*r.measured, r.model)
            found[key].add(replace(r.layout, experts=1))
            times[key] += 1
    repeated = [key for key, n in times.items() if n > 1]
    return len(repeated), sum(len(found[key]) == 1 for key in repeated)
