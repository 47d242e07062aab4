"""Decides: what is seen (`observed`) becomes what should be (`desire`) and what to write (`difference`). No I/O."""
