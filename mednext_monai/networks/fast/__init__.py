"""Faster computations of the same function; see the modules."""
