"""The thin enqueue API: loads no Celery, no database and no provider's client."""
