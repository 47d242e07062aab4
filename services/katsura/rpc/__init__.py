"""How our processes speak gRPC: serving, channels, who is calling, errors on the wire, life and death of a process.

Every `server.py` and the SDK build on it. It knows no service: messages, stores and models are strangers here.
"""
