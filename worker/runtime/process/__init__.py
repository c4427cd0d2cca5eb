"""The life of a worker process: its command line, readiness, drain and recycling."""
