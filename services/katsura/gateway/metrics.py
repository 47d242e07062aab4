"""The gateway's metrics, by the names that vLLM's dashboards already know."""

from __future__ import annotations

from katsura.telemetry import metrics, names

_MODEL = ("model_name",)
_LONG = (*metrics.SECONDS, 60.0, 120.0, 300.0, 600.0)

_RUNNING = metrics.gauge(names.VLLM_RUNNING, "Requests whose tokens are being drawn.", _MODEL)
_WAITING = metrics.gauge(names.VLLM_WAITING, "Requests that wait for their first token.", _MODEL)
_FIRST = metrics.histogram(names.VLLM_TTFT, "Seconds from request to first token.", _MODEL, _LONG)
_GAP = metrics.histogram(names.VLLM_ITL, "Seconds between two pieces of an answer.", _MODEL)
_WHOLE = metrics.histogram(names.VLLM_E2E, "Seconds from request to end.", _MODEL, _LONG)
_PROMPT = metrics.counter(names.VLLM_PROMPT_TOKENS, "Tokens of prompts.", _MODEL)
_DRAWN = metrics.counter(names.VLLM_GENERATION_TOKENS, "Tokens drawn.", _MODEL)
_ENDED = metrics.counter(names.VLLM_SUCCESS, "Answers that ended well.", (*_MODEL, "finished_reason"))
_QUERIED = metrics.counter(names.VLLM_PREFIX_QUERIES, "Prompt tokens looked up in the prefix cache.", _MODEL)
_HIT = metrics.counter(names.VLLM_PREFIX_HITS, "Prompt tokens found in the prefix cache.", _MODEL)


class Measured:
    """One request: `start`, then `tokens` for each piece, then `end`. Times are seconds of one monotonic clock."""

    def __init__(self, model: str, now_s: float) -> None:
        self._model = model
        self._start_s = self._last_s = now_s
        self._drawing = False
        _WAITING.labels(model).inc()

    def tokens(self, count: int, now_s: float) -> None:
        """`count` tokens came."""
        if self._drawing:
            _GAP.labels(self._model).observe(now_s - self._last_s)
        else:
            self._drawing = True
            _WAITING.labels(self._model).dec()
            _RUNNING.labels(self._model).inc()
            _FIRST.labels(self._model).observe(now_s - self._start_s)
        self._last_s = now_s
        _DRAWN.labels(self._model).inc(count)

    def answer(self, finish_reason: str) -> None:
        """An answer ended well."""
        _ENDED.labels(self._model, finish_reason).inc()

    def end(self, prompt_tokens: int, cached_tokens: int, now_s: float) -> None:
        """The request is over, well or not."""
        (_RUNNING if self._drawing else _WAITING).labels(self._model).dec()
        _WHOLE.labels(self._model).observe(now_s - self._start_s)
        _PROMPT.labels(self._model).inc(prompt_tokens)
        _QUERIED.labels(self._model).inc(prompt_tokens)
        _HIT.labels(self._model).inc(cached_tokens)
