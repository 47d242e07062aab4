"""The memory service: agents' execution states as trees that grow, are compressed, checked, revised, forked and merged,
and blocks, the named values that outlive them.

The gateway, the SDK and tools call it by gRPC. `core` decides (what a context holds, what a summary may say), `service`
composes core and store, `server` translates. It must not know models, tokenizers or where requests are routed.
"""
