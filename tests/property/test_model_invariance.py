"""Under `numerics: invariant` no schedule changes a bit: any chunking, batch, page placement or cut of the groups."""

from __future__ import annotations

import time
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.domain.shape import DType, Numerics, layout_for
from katsura.model.batch import SequenceStep, StepBatch
from katsura.model.calibrate import plan_kernels
from katsura.model.config import parse_config
from katsura.model.decoder import Decoder
from katsura.model.ffn import group_partial, sum_groups
from katsura.model.kv import KvArena
from katsura.model.weights import build_attention, build_group

RAW = {
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 61,
}
PAGE_TOKENS, PAGES_EACH, LENGTH, CROWD = 8, 6, 45, 12


class Model:
    """A random model; the FFN groups are computed one by one in a given order, as members would."""

    def __init__(self, family: str, dtype: DType) -> None:
        torch.set_num_threads(1)
        self.config = parse_config(RAW | {"model_type": family})
        layout = layout_for(self.config.shape, 4, 4)
        kernels = plan_kernels(self.config.shape, layout, dtype, Numerics.INVARIANT, time.perf_counter)
        generator = torch.Generator().manual_seed(5)

        def read(piece):
            scale = 1.0 if len(piece.shape) == 1 else piece.shape[1] ** -0.5
            return torch.randn(piece.shape, generator=generator) * scale

        self.arena = KvArena(self.config, PAGES_EACH * CROWD, PAGE_TOKENS, dtype)
        self.decoder = Decoder(self.config, build_attention(self.config, read, kernels), self.arena, kernels)
        self.groups = [[build_group(self.config, layout, at, g, read, kernels) for g in range(4)] for at in range(2)]
        self.ids = torch.randint(0, 61, (CROWD, LENGTH), generator=generator)
        self.alone = [self.step([(i, 0, LENGTH)], range(CROWD), range(4))[0] for i in range(CROWD)]

    def step(self, spans, homes, order):
        """Logits of `(sequence, start, count)` spans; sequence `i` lives in the page block `homes[i]`."""
        pages = {i: range(homes[i] * PAGES_EACH, (homes[i] + 1) * PAGES_EACH) for i, _, _ in spans}
        batch = StepBatch([SequenceStep(start, count, pages[i], range(count)) for i, start, count in spans])
        with torch.inference_mode():
            step = self.decoder.prepare(batch)
            residual = self.decoder.embed(torch.cat([self.ids[i, s : s + n] for i, s, n in spans]))
            for layer, groups in enumerate(self.groups):
                residual, inputs = self.decoder.attend(layer, residual, step)
                partials = {g: group_partial(groups[g], inputs.hidden, inputs.routing) for g in order}
                residual.add_(sum_groups(partials))
            return self.decoder.logits(residual, batch.logit_rows()).split([n for _, _, n in spans])


model = cache(Model)


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("family", ["llama", "mixtral"])
@settings(deadline=None, max_examples=12)
@given(st.data())
def test_no_schedule_changes_a_bit(family, dtype, data):
    subject = model(family, dtype)
    homes = data.draw(st.permutations(range(CROWD)))
    done = [0] * CROWD
    for _ in range(12):
        chosen = data.draw(st.lists(st.integers(0, CROWD - 1), min_size=1, max_size=CROWD, unique=True))
        counts = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 7, 8, 30]), min_size=CROWD, max_size=CROWD))
        spans = [(i, done[i], min(counts[i], LENGTH - done[i])) for i in chosen if done[i] < LENGTH]
        if not spans:
            continue
        order = data.draw(st.permutations(range(4)))
        for (i, start, count), logits in zip(spans, subject.step(spans, homes, order), strict=True):
            assert torch.equal(logits, subject.alone[i][start : start + count]), f"sequence {i} from {start}"
            done[i] += count
