"""Slow statements, their plans, and the indexes that would help or that nobody uses."""
