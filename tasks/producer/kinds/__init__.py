"""The kinds of jobs, one file each: what a job of the kind is given, and what it costs. Loads no Celery."""
