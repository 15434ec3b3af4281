"""Tracing: Python code -> graphs that say all that the code does, or a reason why there is none."""
