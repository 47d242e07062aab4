"""The unified engine (topology Unified): an attention shard whose experts are in its own compute process.

The same server, schedule and arithmetic as the split; only `worker` differs, by handing `LocalFfn` to the runner.
`python -m katsura.engine` is one. It composes the attention room and the model's FFN and decides nothing itself.
"""
