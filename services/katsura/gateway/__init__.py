"""The front door: OpenAI's HTTP API over the tree, the router and the attention shards.

What it does: finds the tenant of the key and the tree of the session, grows the turn into the tree, assembles the
prompt from it, has a shard chosen, streams the answer and grows that too before it says that it is finished. It holds
no state beyond the requests in flight: prompt ids, emitted ids and the sampler's seed, from which a lost shard's
sequence is rebuilt elsewhere. Called by anybody who speaks HTTP; calls the memory service, the router and the shards
through `katsura.sdk`. It must not know how a tree is stored, how a shard is scored, or what a tensor is.

Read first: `core/chat_request.py` (what may be asked), then `turn.py` (the life of one request).
"""
