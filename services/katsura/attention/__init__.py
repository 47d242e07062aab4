"""The attention shard: owns sequences, their KV pages, sampling and batching, and leads the expert members.

Two processes: the compute process (`compute`: torch, pages, schedule, data plane; synchronous) and the RPC process
(`server`, `shard`: gRPC, leases, KV events; asyncio), joined by one batched message per step. `core` decides what a
step does and never sees a tensor. Gateways and routers call it; it must not know of trees, texts or HTTP.
"""
