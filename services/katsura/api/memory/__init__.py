"""Generated from protos/ by `make protos`: never edit. Only rpc, sdk, server modules and testing import it."""
