"""The data plane: one frame, one transport contract, and the pipe that joins the two halves of a process.

What it does: `frame` lays activations out in a buffer and reads them back without copying; `transport` says what a
channel promises; `inproc`, `shm` and `tcp` keep that promise; `connect` picks one; `pipe` carries one message per step
between an RPC process and its compute process. Callers: the compute processes of `attention` and `experts`, and the
engine. It must not know what an FFN is, who placed which group where, or anything of gRPC and asyncio (but for the
asyncio end of the pipe).
"""
