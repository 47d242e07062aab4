"""The `katsura` command: starts everything on one machine, talks to it, and says what is wrong with it.

Does: `up` (manifests to supervised processes), `status`, `doctor`, `chat`, `tree`, `model`, `key`, `demo`. Called by a
person or by `make`. It must not know how a service works inside: it starts services as processes of their own, and
speaks to them as any client does (HTTP to the gateway, gRPC health), except for keys, which it writes through `state`.

    main.py -> one module per command -> core/ decides (layout, fleet, checks), process.py and client.py act

Read first: `core/layout.py` (manifests to processes), `core/fleet.py` (when to start and stop them), `up.py`.
"""
