"""The words every room shares: ids, errors, units, clocks, shapes and hashes.

Pure: plain data and functions of their arguments, standard library only. Every other room may import it, it imports
none. A type belongs here when two rooms that may not import each other must mean the same thing by it.
"""
