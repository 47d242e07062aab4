"""What the memory service decides, as pure functions: assembly, compressors, validators, limits.

Called by `memory.service` only. Deterministic: the same branch and request give the same bytes.
"""
