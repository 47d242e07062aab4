"""The compute half on tiny random models against transformers, alone and in a busy batch, through forks and cuts."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from katsura.attention import messages
from katsura.attention.core.intake import Resumed
from katsura.attention.core.plan import Admitted, Finish, Opened
from katsura.attention.core.sequence import Program
from katsura.attention.messages import Drawn, Sampling
from katsura.domain.errors import DeadlineExceededError, InternalError, InvalidArgumentError, UnavailableError
from katsura.testing.compute import OWNER, InlineShard
from katsura.testing.tiny import TinyModel, save_tiny

CONTEXT = 512


@pytest.fixture(scope="module", params=["llama", "mixtral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "llama")


@pytest.fixture
def shard_of() -> Iterator[Callable[..., InlineShard]]:
    made: list[InlineShard] = []

    def make(folder: Path, **variables: object) -> InlineShard:
        made.append(InlineShard(folder, **variables))
        return made[-1]

    yield make
    for shard in made:
        shard.close()


def prompt_of(length: int, seed: int = 3) -> list[int]:
    rng = random.Random(seed)
    return [1, *(rng.randrange(3, 199) for _ in range(length - 1))]


def logits_of(shard: InlineShard, call: int, choice: int = 0) -> dict[int, torch.Tensor]:
    name = f"s{call}.{choice}"
    return {position: row for (sequence, position), row in shard.recorder.logits.items() if sequence == name}


@pytest.mark.parametrize(("chunk", "page_tokens"), list(product((1, 7, 64, 256), (8, 16, 64))))
def test_logits_and_greedy_ids_equal_those_of_transformers(
    model: TinyModel, shard_of: Callable[..., InlineShard], chunk: int, page_tokens: int
) -> None:
    shard = shard_of(model.folder, STEP_TOKENS=chunk, PAGE_TOKENS=page_tokens)
    prompt = prompt_of(70)
    call = shard.generate(prompt, 32)
    (ids,) = shard.tokens(call)
    peer = model.logits([*prompt, *ids])
    for position, row in logits_of(shard, call).items():
        torch.testing.assert_close(row, peer[position], atol=1e-5, rtol=0)
        assert ids[position - 69] == int(peer[position].argmax())
    assert len(ids) == 32


def test_a_busy_batch_does_not_change_a_bit(model: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    alone = shard_of(model.folder, STEP_TOKENS=256)
    prompt = prompt_of(45)
    call = alone.generate(prompt, 24)
    (expected,) = alone.tokens(call)
    busy = shard_of(model.folder, STEP_TOKENS=24)
    others = [busy.generate(prompt_of(10 + 9 * i, seed=i), 30) for i in range(5)]
    busy.until(lambda: sum(isinstance(a, Drawn) for a in busy.answers.get(others[0], [])) > 3)
    call_busy = busy.generate(prompt, 24)
    (ids,) = busy.tokens(call_busy)
    assert ids == expected
    mine, theirs = logits_of(alone, call), logits_of(busy, call_busy)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[position], theirs[position]) for position in mine)
    assert max(len(plan.rows) for plan in busy.recorder.plans) >= 5, "the batch was not busy"


def test_a_shared_prefix_is_computed_once_and_reported(llama: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(llama.folder, PAGE_TOKENS=8)
    prompt = prompt_of(40)
    first, second = shard.generate(prompt, 4), 0
    (ids,) = shard.tokens(first)
    second = shard.generate(prompt, 4)
    assert shard.tokens(second) == [ids]
    admitted = [shard.answers[call][0] for call in (first, second)]
    assert admitted == [Admitted(first, 40, 0), Admitted(second, 40, 32)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(logits_of(shard, first).values(), logits_of(shard, second).values(), strict=True)
    )


def test_choices_are_forks_that_equal_independent_runs(llama: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(llama.folder, PAGE_TOKENS=8)
    prompt, sampling = prompt_of(21), Sampling(temperature=0.9, seed=11, top_p=0.9)
    together = shard.tokens(shard.generate(prompt, 12, choices=3, sampling=sampling), 3)
    assert len({tuple(ids) for ids in together}) == 3
    finished = Resumed((), True)
    for choice in range(3):
        resumed = tuple(Resumed((), False) if i == choice else finished for i in range(3))
        call = shard.generate(prompt, 12, choices=3, sampling=sampling, resumed=resumed)
        shard.until(lambda call=call: any(getattr(a, "finish", None) for a in shard.answers.get(call, [])))
        assert [a.token for a in shard.answers[call] if isinstance(a, Drawn)] == together[choice]


def test_a_stream_rebuilt_from_its_ids_goes_on_with_the_same_ones(
    model: TinyModel, shard_of: Callable[..., InlineShard]
) -> None:
    lost, other = shard_of(model.folder), shard_of(model.folder, STEP_TOKENS=16)
    sampling = Sampling(temperature=1.0, seed=5, presence_penalty=0.5, frequency_penalty=0.25)
    (whole,) = lost.tokens(lost.generate(prompt_of(30), 20, sampling=sampling))
    call = other.generate(prompt_of(30), 20, sampling=sampling, resumed=(Resumed(tuple(whole[:7]), False),))
    assert other.tokens(call) == [whole[7:]]


def opened(answer: Any) -> Any:
    assert isinstance(answer, Opened)
    return answer.sequences


def test_kept_sequences_fork_and_cut_like_fresh_ones(model: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(model.folder, PAGE_TOKENS=8)
    prompt = prompt_of(27)
    tokens = tuple(prompt)
    shard.ask(lambda call: messages.Open(call, "", OWNER, Program(), "root", tokens, 60.0, 1e18))
    forks = opened(shard.ask(lambda call: messages.Fork(call, "", OWNER, "root", ("left", "right"), 20, 1e18)))
    assert [(view.token_count, view.computed_tokens) for view in forks] == [(20, 20), (20, 20)]
    calls = {name: shard.generate([7, 8], 8, sequence_id=name) for name in ("root", "left", "right")}
    for name, shared in (("root", prompt), ("left", prompt[:20]), ("right", prompt[:20])):
        assert shard.tokens(calls[name]) == [model.greedy([*shared, 7, 8], 8)], name
    (view,) = opened(shard.ask(lambda call: messages.Truncate(call, OWNER, "root", 13)))
    assert view.token_count == 13
    again = shard.generate([9], 8, sequence_id="root")
    assert shard.tokens(again) == [model.greedy([*prompt[:13], 9], 8)]
    shard.ask(lambda call: messages.Delete(call, OWNER, "root"))
    left = shard.generate([], 4, sequence_id="left")
    answered = model.greedy([*prompt[:20], 7, 8], 12)
    assert shard.tokens(left) == [answered[8:]]


def test_log_probabilities_are_those_of_the_untempered_distribution(
    llama: TinyModel, shard_of: Callable[..., InlineShard]
) -> None:
    shard = shard_of(llama.folder)
    prompt = prompt_of(12)
    banned = int(llama.logits(prompt)[-1].argmax())
    sampling = Sampling(top_logprobs=3, bias_ids=(banned,), bias_values=(-100.0,))
    call = shard.generate(prompt, 1, sampling=sampling)
    shard.tokens(call)
    drawn = shard.answers[call][-1]
    assert isinstance(drawn, Drawn)
    expected = torch.log_softmax(llama.logits(prompt)[-1], -1)
    assert drawn.token != banned
    assert drawn.top[0][0] == banned
    assert drawn.logprob is not None
    assert math.isclose(drawn.logprob, float(expected[drawn.token]), abs_tol=1e-4)


def test_bad_sampling_is_refused_by_name(llama: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(llama.folder)
    call = shard.generate(prompt_of(5), 2, sampling=Sampling(temperature=9.0))
    with pytest.raises(InvalidArgumentError) as caught:
        shard.tokens(call)
    assert caught.value.field == "temperature"


def test_stop_ids_are_drawn_and_end_the_answer(llama: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(llama.folder)
    prompt = prompt_of(18)
    expected = llama.greedy(prompt, 12)
    stop = expected[5]
    call = shard.generate(prompt, 12, stop_ids=(stop,))
    assert shard.tokens(call) == [expected[: expected.index(stop) + 1]]
    assert shard.finish(call) is Finish.STOP


def test_a_cancelled_generation_frees_its_pages(llama: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(llama.folder, PAGE_TOKENS=8)
    call = shard.generate(prompt_of(30), 400)
    shard.until(lambda: any(isinstance(a, Drawn) for a in shard.answers.get(call, [])))
    shard.tell(messages.Cancel(call))
    shard.turn()
    assert shard.intake.sequences == {}
    assert shard.intake.load().free_page_count == shard.intake.limits.page_count


def test_a_deadline_ends_a_generation_between_two_steps(llama: TinyModel, shard_of: Callable[..., InlineShard]) -> None:
    shard = shard_of(llama.folder)
    call = shard.generate(prompt_of(30), 400, deadline_s=time.monotonic() - 1.0)
    with pytest.raises(DeadlineExceededError):
        shard.tokens(call)
    assert shard.intake.sequences == {}


class Broken:
    """An FFN that fails some of its calls, as a pool does that lost a member."""

    def __init__(self, ffn: Any, error: Exception, times: int, after: int = 0) -> None:
        self._ffn, self._error, self._times, self._after = ffn, error, times, after

    def apply(self, layer: int, inputs: Any) -> torch.Tensor:
        self._after -= 1
        if self._after < 0 and self._times > 0:
            self._times -= 1
            raise self._error
        result: torch.Tensor = self._ffn.apply(layer, inputs)
        return result


def break_ffn(shard: InlineShard, error: Exception, times: int, after: int = 0) -> None:
    runner: Any = shard.recorder.runner
    runner._ffn = Broken(runner._ffn, error, times, after)


def test_a_step_without_members_pauses_and_goes_on_with_the_same_tokens(
    model: TinyModel, shard_of: Callable[..., InlineShard]
) -> None:
    shard = shard_of(model.folder, PAGE_TOKENS=8)
    prompt = prompt_of(20)
    break_ffn(shard, UnavailableError("group 3 has no copy"), times=5, after=7)
    call = shard.generate(prompt, 16)
    assert shard.tokens(call) == [model.greedy(prompt, 16)]
    assert "group 3 has no copy" in {report.paused for report in shard.reports}
    assert shard.reports[-1].paused == ""


def test_a_pause_that_outlasts_a_deadline_ends_only_the_sequences_that_had_it(
    llama: TinyModel, shard_of: Callable[..., InlineShard]
) -> None:
    shard = shard_of(llama.folder)
    patient = shard.generate(prompt_of(9), 6)
    hasty = shard.generate(prompt_of(14, seed=8), 400, deadline_s=time.monotonic() + 0.3)
    shard.until(lambda: any(isinstance(a, Drawn) for a in shard.answers.get(hasty, [])))
    break_ffn(shard, UnavailableError("group 3 has no copy"), times=10**9)
    with pytest.raises(DeadlineExceededError, match="group 3"):
        shard.tokens(hasty)
    runner: Any = shard.recorder.runner
    runner._ffn = runner._ffn._ffn
    assert shard.tokens(patient) == [llama.greedy(prompt_of(9), 6)]


def test_numbers_that_are_none_fail_their_sequence_and_never_become_a_token(
    llama: TinyModel, shard_of: Callable[..., InlineShard]
) -> None:
    shard = shard_of(llama.folder)
    run = shard.recorder.runner.run

    def poisoned(plan: Any) -> Any:
        result = run(plan)
        for index, row in enumerate(row for row in plan.rows if row.draws):
            if row.sequence_id == "s2.0":
                with torch.inference_mode():
                    result.logits[index, 5] = math.nan
        return result

    recorder: Any = shard.recorder
    recorder.runner.run = poisoned
    good, bad = shard.generate(prompt_of(9), 6), shard.generate(prompt_of(11), 6)
    with pytest.raises(InternalError, match="no number"):
        shard.tokens(bad)
    assert shard.tokens(good) == [llama.greedy(prompt_of(9), 6)]
