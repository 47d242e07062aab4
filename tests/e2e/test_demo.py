"""The conversation of `make run`: the demo model, the real split, one trace, and transformers' own greedy ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from katsura.domain.ids import DEFAULT_TENANT
from katsura.rpc.clock import SystemClock
from katsura.rpc.context import CallContext
from katsura.sdk import MemoryClient, connect
from katsura.state.connect import Store
from katsura.state.tenants import RedisTenantStore
from katsura.testing.collector import Collector
from katsura.text.digest import tokenizer_digest
from katsura.text.template import ChatTemplate
from katsura.text.tokenizer import Tokenizer

from .conftest import Up

pytestmark = [pytest.mark.xdist_group("up"), pytest.mark.demo]

TRACED = {f"katsura-{role}" for role in ("gateway", "memory", "router", "attention", "experts")}


async def answers_in_trees(house: Up, digest: str) -> list[tuple[list[dict[str, str]], list[int]]]:
    """For every kept answer: the messages before it, as assembled, and the ids of its whole segment."""
    memory = next(p["address"] for p in house.run["processes"] if p["role"] == "memory")
    store = await Store.open(house.run["store_url"])
    tenant = await RedisTenantStore(store, SystemClock()).ensure_tenant(DEFAULT_TENANT)
    found = []
    async with connect(memory, internal_token=house.run["token"]) as connection:
        client = MemoryClient(connection).acting_for(CallContext(tenant))
        for tree in (await client.list_trees()).trees:
            for branch in (await client.get_tree(tree.tree_id)).branches:
                context = await client.assemble_context(
                    tree.tree_id,
                    branch=branch.name,
                    budget_tokens=4096,
                    tokenizer_digest=digest,
                    include_token_ids=True,
                )
                messages: list[dict[str, str]] = []
                for segment in context.segments:
                    if segment.role == "assistant":
                        found.append((list(messages), list(segment.token_ids)))
                    messages.append({"role": segment.role, "content": segment.content})
    await store.close()
    return found


async def test_the_demo_answers_with_transformers_greedy_ids_in_one_trace(demo_model: Path, tmp_path: Path) -> None:
    with Collector() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        with Up(("demo", "--port", "0"), tmp_path / "data", environ) as house:
            house.up()
            house.until("◀")
            said = "".join(house.lines)
            tokenizer = Tokenizer.from_folder(demo_model)
            kept = await answers_in_trees(house, tokenizer_digest(demo_model))
            collector.wait_for(TRACED, 60)
    assert "The capital of France is Paris." in said
    assert "The capital of Italy is Rome." in said
    model = transformers.AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    template = ChatTemplate.from_folder(demo_model, tokenizer)
    checked = {json.dumps(messages): (messages, ids) for messages, ids in kept}
    assert len(checked) >= 6
    for messages, ids in checked.values():
        segments = template.render_segments(messages)
        prompt = [i for text in segments for i in tokenizer.encode(text)]
        lead = tokenizer.encode(segments[-1])
        drawn = ids[len(lead) :]
        assert ids[: len(lead)] == lead
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)[0, len(prompt) :].tolist()
        assert drawn[: len(greedy)] == greedy, tokenizer.decode(greedy)
