import os
from kombu import Queue
from worker.policy import load
p = load()
broker_url = os.environ.get("CELERY_BROKER_URL", "redis://127.0.0.1:6379/0")
result_backend = os.environ.get("CELERY_RESULT_BACKEND", broker_url)
broker_transport = "worker.transport:Transport"
broker_transport_options = {"priority_steps": [0, 2, 4, 6, 8], "sep": "\x06\x16", "max_connections": 400}
broker_connection_retry_on_startup = True
task_queues = [Queue(n) for n in p.queues]
task_routes = {q.task: {"queue": n} for n, q in p.queues.items()}
include = [q.task for q in p.queues.values()]
task_acks_late = task_reject_on_worker_lost = task_track_started = worker_send_task_events = task_send_sent_event = True
result_expires = 86400
accept_content = ["json"]
