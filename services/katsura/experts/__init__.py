"""The expert member: holds reduction groups of FFN weights and answers frames with one f32 partial per (token, group).

Two processes: the compute process (`compute`: torch, weights, data plane; synchronous) and the RPC process (`service`,
`server`: gRPC, leases, tables; asyncio), joined by a pipe. `core` decides what to load and in which order to serve, and
never sees a tensor. Shards send frames, operators call Load, Probe and Drain. A member knows no sequence, no token and
no tenant; it starts empty and holds what the expert table gives it.
"""
