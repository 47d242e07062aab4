"""Public fakes and real servers for tests: ours, and those of whoever builds on Katsura.

Above every other room, imported by none: nothing that serves a request may depend on it.
"""
