"""The router's decisions, without a clock, a socket or a store: index, scores, picks, tables."""
