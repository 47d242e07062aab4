"""Every span, attribute, metric and log field by name. A name that is not here does not exist."""

from __future__ import annotations

from typing import Final

# Spans: room.verb
SPAN_HTTP: Final = "gateway.request"
SPAN_ASSEMBLE: Final = "gateway.assemble"
SPAN_RPC_SERVER: Final = "rpc.serve"
SPAN_RPC_CLIENT: Final = "rpc.call"
SPAN_GENERATE: Final = "attention.generate"
SPAN_PREFILL: Final = "attention.prefill"
SPAN_EXPERT_FRAME: Final = "experts.frame"
SPAN_DECIDE: Final = "router.decide"
SPAN_COMMIT: Final = "memory.commit"

# Attributes and log fields
TENANT: Final = "katsura.tenant"
SESSION: Final = "katsura.session"
REQUEST: Final = "katsura.request"
SHARD: Final = "katsura.shard"
MEMBER: Final = "katsura.member"
STEP: Final = "katsura.step"
TOKEN_COUNT: Final = "katsura.tokens"
CACHED_TOKENS: Final = "katsura.cached_tokens"
HTTP_ROUTE: Final = "http.route"
RPC_METHOD: Final = "rpc.method"
REASON: Final = "katsura.reason"
OPERATION: Final = "katsura.operation"

# Metrics of every process
RPC_SECONDS: Final = "katsura_rpc_seconds"
RPC_IN_FLIGHT: Final = "katsura_rpc_in_flight"

# Attention shard
SHARD_STEP_SECONDS: Final = "katsura_shard_step_seconds"
SHARD_STEP_TOKENS: Final = "katsura_shard_step_tokens"
SHARD_TRANSPORT_SECONDS: Final = "katsura_shard_transport_seconds"
SHARD_PAGES_FREE: Final = "katsura_shard_pages_free"
SHARD_RUNNING: Final = "katsura_shard_running_sequences"
SHARD_WAITING: Final = "katsura_shard_waiting_sequences"
SHARD_CACHED_TOKENS: Final = "katsura_shard_cached_tokens_total"
SHARD_PROMPT_TOKENS: Final = "katsura_shard_prompt_tokens_total"
SHARD_GENERATED_TOKENS: Final = "katsura_shard_generated_tokens_total"
SHARD_FAILOVERS: Final = "katsura_shard_failovers_total"
KV_EVENTS: Final = "katsura_kv_events_total"

# Expert member
MEMBER_FRAMES: Final = "katsura_member_frames_total"
MEMBER_FRAME_SECONDS: Final = "katsura_member_frame_seconds"
MEMBER_LOADED_BYTES: Final = "katsura_member_loaded_bytes"

# Router
ROUTER_DECISIONS: Final = "katsura_router_decisions_total"
ROUTER_DECISION_SECONDS: Final = "katsura_router_decision_seconds"
ROUTER_MATCHED_TOKENS: Final = "katsura_router_matched_tokens_total"
ROUTER_COORDINATOR: Final = "katsura_router_coordinator"

# Memory
MEMORY_COMMITS: Final = "katsura_memory_commits_total"
MEMORY_CONFLICTS: Final = "katsura_memory_conflicts_total"
MEMORY_ASSEMBLE_SECONDS: Final = "katsura_memory_assemble_seconds"
MEMORY_COLLECTED_NODES: Final = "katsura_memory_collected_nodes_total"
MEMORY_COLLECTED_BRANCHES: Final = "katsura_memory_collected_branches_total"
MEMORY_COLLECT_LOST: Final = "katsura_memory_collect_lost_total"

# Operator
OPERATOR_PASSES: Final = "katsura_operator_reconcile_total"
OPERATOR_PASS_SECONDS: Final = "katsura_operator_reconcile_duration_seconds"
OPERATOR_WRITES: Final = "katsura_operator_writes_total"
OPERATOR_LEADS: Final = "katsura_operator_leads"

# Gateway: the names that vLLM's dashboards already know
VLLM_RUNNING: Final = "vllm:num_requests_running"
VLLM_WAITING: Final = "vllm:num_requests_waiting"
VLLM_TTFT: Final = "vllm:time_to_first_token_seconds"
VLLM_ITL: Final = "vllm:inter_token_latency_seconds"
VLLM_E2E: Final = "vllm:e2e_request_latency_seconds"
VLLM_PROMPT_TOKENS: Final = "vllm:prompt_tokens"
VLLM_GENERATION_TOKENS: Final = "vllm:generation_tokens"
VLLM_SUCCESS: Final = "vllm:request_success"
VLLM_PREFIX_QUERIES: Final = "vllm:prefix_cache_queries"
VLLM_PREFIX_HITS: Final = "vllm:prefix_cache_hits"
"""prometheus_client appends `_total` to counters, as vLLM's exporter does."""
