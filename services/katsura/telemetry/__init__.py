"""Traces, metrics and logs: one set of names, switched on by configuration, free when off.

Every process calls `setup.configure` once; rooms use `trace.span`, `metrics` and `log.get` with the constants of
`names`. The only importer of opentelemetry and prometheus_client. Knows nothing of what it measures. Prompts, answers
and keys are never attributes, labels or log fields: ids and counts only.
"""
