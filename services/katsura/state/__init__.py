"""The one door to Redis and Valkey: connections, keys, atomic functions, and the stores built on them.

`memory`, `router`, `gateway` and the shards call it; each store is a protocol with a Valkey adapter and an in-memory
twin that pass one contract suite. It decides nothing about agents, routes or prompts and must not know who calls it.
"""
