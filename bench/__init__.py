"""Benchmarks: each prints a ratio to a raw limit, or to plain Celery, measured in the same run."""
