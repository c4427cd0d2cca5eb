"""What of Celery and kombu is subclassed, so that a worker runs a job safely. Imports every other room of `worker`."""
