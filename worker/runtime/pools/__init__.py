"""Celery's pools, and the children of one."""
