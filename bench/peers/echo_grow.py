"""The floor under Grow: a gRPC echo, followed by one bare Lua call that appends a step. It validates nothing.

    python bench/peers/echo_grow.py unix:/path redis-url

One asyncio process with uvloop and hiredis, as our service has. A call carries the bytes of a GrowRequest; they are
echoed after the script compared the head, kept the step, listed it on its branch and wrote an event.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import redis.asyncio
import uvloop

SCRIPT = """
local head = redis.call('HGET', KEYS[1], 'head') or '0'
if ARGV[1] ~= '' and ARGV[1] ~= head then return {'MOVED', head} end
local id = tostring(tonumber(head) + 1)
redis.call('HSET', KEYS[2], id, ARGV[2])
redis.call('HSET', KEYS[1], 'head', id)
redis.call('RPUSH', KEYS[4], id)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 1000, '*', 'n', id)
return {'OK', id}
"""


async def main(address: str, url: str) -> None:
    store = redis.asyncio.Redis.from_url(url, protocol=2)
    script = store.register_script(SCRIPT)

    async def grow(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await script(keys=["{floor}:meta", "{floor}:nodes", "{floor}:events", "{floor}:branch"], args=["", request])
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("floor", {"Grow": grpc.unary_unary_rpc_method_handler(grow)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
