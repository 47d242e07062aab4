"""Decisions of the command line, without any I/O: which processes, when to start and end them, what a check means."""
