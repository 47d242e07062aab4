"""The gateway's decisions: what a request means, which path of the tree it continues, what the answer looks like.

Pure: plain data in, plain data out. Callers are the gateway's routes and turns; nothing here knows HTTP or gRPC.
"""
