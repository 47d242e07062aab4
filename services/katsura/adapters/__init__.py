"""Katsura's trees under the interfaces that agent frameworks already have: LangGraph, OpenAI Agents, MCP.

Programs outside import it (`pip install katsura[adapters]`), none of our services does; only `katsura mcp` starts the
one server that lives here. Each adapter is a thin face over the sdk: it keeps no truth of its own (a second process
sees the same threads), and what it cannot map exactly it refuses. The other way round, `worker` (`katsura work`) lets
any OpenAI-compatible endpoint write and judge summaries. It must not know the store, the gateway or our own models.
"""
