"""Made-up clusters and demands by seed: for property tests and benches. Called synthetic wherever they are shown."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence

from katsura.placement import calibration, catalogue
from katsura.placement.card import ModelCard, read_card
from katsura.placement.cost import BF16, Load
from katsura.placement.operate import Slo
from katsura.placement.problem import SPLIT, UNIFIED, HelperService, ModelService, NodeClass, Objective, Problem
from katsura.placement.simulate import Arrival

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN_32B = {
    "model_type": "qwen3",
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80} | {
    "num_attention_heads": 64
}
MIXTRAL_8X7B = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
}
MODELS = (LLAMA_8B, QWEN_32B, LLAMA_70B, MIXTRAL_8X7B)


def cards() -> tuple[ModelCard, ...]:
    """Four models of 8 to 70 billion parameters."""
    return tuple(read_card(config) for config in MODELS)


def node_class(
    device: str, count: int, *, per_node: int = 8, domain: str = "a", spot: bool = False, usd: float | None = None
) -> NodeClass:
    """`count` nodes with `per_node` accelerators called `device` in the catalogue, or of that many cores of a CPU."""
    found, core = catalogue.built_in().named(device), catalogue.built_in().named("cpu")
    label = f"{device}x{per_node}/{domain}{'/spot' if spot else ''}"
    price = usd if usd is not None else per_node * (found.hourly_usd or 2.0) * (0.4 if spot else 1.0)
    return NodeClass(
        name=label,
        device=None if found.is_cpu else found,
        accelerators=0 if found.is_cpu else per_node,
        core=found if found.is_cpu else core,
        cores=float(per_node) if found.is_cpu else 96.0,
        ram_bytes=(4.0 if found.is_cpu else 128.0) * per_node * 2**30,
        domain=domain,
        spot=spot,
        hourly_usd=price,
        watts=per_node * found.watts,
        idle_watts=per_node * found.idle_watts,
        nodes=tuple(f"{label}-{i}" for i in range(count)),
    )


def model_service(
    name: str,
    card: ModelCard,
    requests_s: float,
    *,
    itl_ms: float | None = 60.0,
    prompt: int = 1500,
    output: int = 300,
    topologies: Sequence[str] = (UNIFIED,),
    domains_min: int = 1,
    spot_share: float = 0.0,
) -> ModelService:
    """A service of `card` with one kind of request."""
    return ModelService(
        name=name,
        card=card,
        precision=BF16,
        load=Load(prompt, output, 0.3),
        requests_s=requests_s,
        slo=Slo(None if itl_ms is None else itl_ms / 1e3, None),
        topologies=tuple(topologies),
        domains_min=domains_min,
        spot_share=spot_share,
    )


def problem_of(
    services: Sequence[ModelService | HelperService],
    classes: Sequence[NodeClass],
    objective: Objective = Objective.COST,
) -> Problem:
    """A problem with the built-in calibration, at the median (confidence 0.5)."""
    return Problem(tuple(services), tuple(classes), calibration.built_in(), objective, confidence=0.5)


def synthetic_problem(nodes: int, services: int, seed: int, load: float = 0.25, racks: int | None = None) -> Problem:
    """`nodes` nodes of five kinds over racks of about 25, and `services` models whose demand fills `load` of them."""
    draw = random.Random(seed)  # noqa: S311 - a seeded experiment, not a secret
    kinds = [("A100-80", 8), ("H100", 8), ("L40S", 8), ("L4", 4), ("H200", 8)]
    domains = racks or max(2, nodes // 25)
    classes = []
    left = nodes
    for i in range(domains):
        here = left if i == domains - 1 else nodes // domains
        left -= here
        first, second = draw.sample(kinds, 2)
        split = draw.randint(here // 3, 2 * here // 3)
        for (device, per_node), count in ((first, split), (second, here - split)):
            if count:
                classes.append(node_class(device, count, per_node=per_node, domain=f"rack-{i:03}"))
    strength = sum(c.accelerators * len(c.nodes) * (c.device.memory_bytes_s if c.device else 0.0) for c in classes)
    made = []
    for i in range(services):
        card = draw.choice(cards())
        # A request of 300 tokens in a batch of 40 reads a fortieth of the weights 300 times.
        request_bytes = 2 * card.active_parameters * 300 / 40 * draw.uniform(1.5, 3.0)
        made.append(
            model_service(
                f"svc-{i:02}",
                card,
                round(load * strength / services / request_bytes, 2),
                itl_ms=draw.choice([40.0, 60.0, 100.0]),
                topologies=(UNIFIED, SPLIT) if draw.random() < 0.25 else (UNIFIED,),
                domains_min=draw.choice([1, 1, 2]),
            )
        )
    return problem_of(made, classes)


def agent_trace(service: ModelService, rate: float, seconds: float, seed: int, turns: float = 6.0) -> Iterator[Arrival]:
    """Sessions of `turns` mean turns whose prompts grow by what was said, beginning so that requests come at `rate`.

    In order of time; only sessions that have turns left are kept in memory.
    """
    draw = random.Random(seed)  # noqa: S311 - a seeded experiment, not a secret
    begun, session = draw.expovariate(rate / turns), 0
    coming: list[tuple[float, int, int, int]] = []
    while begun < seconds or coming:
        if begun < seconds and (not coming or begun <= coming[0][0]):
            left = 1 + int(draw.expovariate(1 / max(1e-9, turns - 0.5)))
            heapq.heappush(coming, (begun, session, left, 0))
            begun += draw.expovariate(rate / turns)
            session += 1
            continue
        at, own, left, held = heapq.heappop(coming)
        if at >= seconds:
            continue
        output = max(4, int(draw.gauss(service.load.output, service.load.output / 3)))
        fresh = max(16, int(draw.gauss(service.load.new_prompt, service.load.new_prompt / 3)))
        yield Arrival(at, service.name, own, held + fresh, output, held)
        if left > 1:
            following = at + output * 0.03 + draw.expovariate(1 / 4.0)
            heapq.heappush(coming, (following, own, left - 1, held + fresh + output))
