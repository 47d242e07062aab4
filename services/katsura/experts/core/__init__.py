"""Decisions of a member, pure: what to hold, what to serve first, what a frame costs."""
