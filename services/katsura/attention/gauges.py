"""The shard's metrics, kept by its RPC process from the compute process's reports."""

from __future__ import annotations

from katsura.attention.core.plan import Admitted
from katsura.attention.messages import Drawn, Report
from katsura.telemetry import metrics, names

_STEP_SECONDS = metrics.histogram(names.SHARD_STEP_SECONDS, "Seconds of a step.")
_TRANSPORT_SECONDS = metrics.histogram(
    names.SHARD_TRANSPORT_SECONDS, "Seconds of a step on the way to members and back."
)
_STEP_TOKENS = metrics.histogram(
    names.SHARD_STEP_TOKENS, "Tokens of a step.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
)
_PAGES_FREE = metrics.gauge(names.SHARD_PAGES_FREE, "Pages that no sequence holds, cached ones included.")
_RUNNING = metrics.gauge(names.SHARD_RUNNING, "Sequences in the batch.")
_WAITING = metrics.gauge(names.SHARD_WAITING, "Sequences that wait for admission.")
_PROMPT = metrics.counter(names.SHARD_PROMPT_TOKENS, "Prompt tokens admitted.")
_CACHED = metrics.counter(names.SHARD_CACHED_TOKENS, "Prompt tokens found in cached pages.")
_GENERATED = metrics.counter(names.SHARD_GENERATED_TOKENS, "Tokens drawn.")
_FAILOVERS = metrics.gauge(names.SHARD_FAILOVERS, "Frames that an alternate served after a member was lost.")
_EVENTS = metrics.counter(names.KV_EVENTS, "Batches of KV events made.")


class Gauges:
    """Keeps the metrics of the one shard of this process."""

    def note(self, report: Report) -> None:
        """Take over one report."""
        for answer in report.answers:
            match answer:
                case Drawn():
                    _GENERATED.inc()
                case Admitted(_, prompt_tokens, cached_tokens):
                    _PROMPT.inc(prompt_tokens)
                    _CACHED.inc(cached_tokens)
        if report.timing is not None:
            _STEP_SECONDS.observe(report.timing.seconds)
            _TRANSPORT_SECONDS.observe(report.timing.transport_seconds)
            _STEP_TOKENS.observe(report.timing.token_count)
        if report.load is not None:
            _PAGES_FREE.set(report.load.free_page_count)
            _RUNNING.set(report.load.running_count)
            _WAITING.set(report.load.waiting_count)
        if report.batch is not None:
            _EVENTS.inc()
        if report.pool is not None:
            _FAILOVERS.set(report.pool.failovers)
