"""Tensor math of the models we serve: pure functions and plain containers of torch tensors.

The attention shard drives `decoder.Decoder` (norm, q/k/v, RoPE, paged attention, gate, logits), an expert member calls
`ffn.group_partial`, the unified engine joins both by `ffn.LocalFfn`; `weights` reads checkpoints by the tables of
`families` and builds the containers of `weights.py`. Everything here is a function of its arguments: no files, no
clocks, no random state, no threads, and no knowledge of processes, frames or scheduling.

Read in this order: config, families/, weights, linear (and kernels: how one revision fixes its arithmetic), attention,
decoder, ffn, sampling.
"""
