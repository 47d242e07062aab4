"""Katsura serves LLM agents: one execution-state tree for prompts, KV cache and routing."""
