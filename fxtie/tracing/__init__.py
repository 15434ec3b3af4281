"""Tracing: Python code -> a graph of all that the code does, or the reason why there is none."""
