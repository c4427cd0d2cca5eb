"""Turn queues.yaml and the environment into Celery settings. Decides nothing itself."""

import os as _os
import ssl as _ssl

from kombu import Exchange as _Exchange
from kombu import Queue as _Queue

from worker.errors import ConfigurationError as _ConfigurationError
from worker.policy.policy import load as _load
from worker.policy.priority import STEPS as _STEPS
from worker.policy.queue_file import whole_number as _whole_number
from worker.records.keys import SEPARATOR as _SEPARATOR

_policy = _load()
_key_prefix = _os.environ.get("FOREBAY_KEY_PREFIX", "")
_max_connections = _whole_number(_os.environ, "REDIS_MAX_CONNECTIONS", 1000, least=1, most=1_000_000)

# Where things are.
broker_url = _os.environ.get("CELERY_BROKER_URL") or "redis://127.0.0.1:6379/0"
result_backend = _os.environ.get("CELERY_RESULT_BACKEND") or broker_url
include = list({queue.task: queue for queue in _policy.queues.values()})

# The transport that loses nothing, in kombu's own list layout.
broker_transport = (
    "worker.runtime.transport:SentinelTransport"
    if broker_url.startswith("sentinel")
    else "worker.runtime.transport:Transport"
)
broker_transport_options = {
    "priority_steps": list(_STEPS),
    "sep": _SEPARATOR,
    "queue_order_strategy": "round_robin",
    "global_keyprefix": _key_prefix,
    "max_connections": _max_connections,
    "socket_keepalive": True,
    "socket_connect_timeout": 5.0,
    "health_check_interval": 10,
}
# kombu turns TLS on by the name of its own transport; ours would connect in the clear to a rediss:// URL.
_VERIFIED = {"ssl_cert_reqs": _ssl.CERT_REQUIRED}
broker_use_ssl = _VERIFIED if broker_url.startswith("rediss:") and "ssl_cert_reqs" not in broker_url else None
redis_backend_use_ssl = (
    _VERIFIED if result_backend.startswith("rediss:") and "ssl_cert_reqs" not in result_backend else None
)
result_backend_transport_options = {"global_keyprefix": _key_prefix}
if _sentinel_master := _os.environ.get("REDIS_SENTINEL_MASTER"):
    broker_transport_options["master_name"] = _sentinel_master
    result_backend_transport_options["master_name"] = _sentinel_master
elif broker_url.startswith("sentinel"):
    raise _ConfigurationError(
        ["environment: REDIS_SENTINEL_MASTER: not set: must name the master of CELERY_BROKER_URL"]
    )
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
worker_cancel_long_running_tasks_on_connection_loss = False

# Queues. A task that no queue declares goes to the first queue rather than to one that nobody serves.
task_queues = [_Queue(name, _Exchange(name), routing_key=name) for name in _policy.queues]
task_default_queue = next(iter(_policy.queues))
task_create_missing_queues = True
# A task that several queues declare goes to the first of them.
task_routes = {queue.task: {"queue": queue.name} for queue in reversed(_policy.queues.values())}

# What loses nothing: a job is acknowledged when it has ended, and a lost child is no end.
task_acks_late = True
task_reject_on_worker_lost = True
task_acks_on_failure = True
task_acks_on_timeout = True
worker_consumer = "worker.runtime.consumer:Consumer"
worker_enable_prefetch_count_reduction = False  # what runs goes on running through a reconnect

# JSON only.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]

# Events for Flower; arguments and results are kept out of them by `worker.records.message` and `worker.runtime.task`.
task_track_started = True
task_send_sent_event = True
worker_send_task_events = True

# Results expire; a result backend that is away for a moment is waited for.
result_expires = int(_policy.retention.result_s)
result_extended = False
result_backend_always_retry = True
result_backend_max_retries = 20
redis_max_connections = _max_connections
redis_socket_keepalive = True
redis_socket_timeout = 30.0
redis_socket_connect_timeout = 5.0
redis_retry_on_timeout = True

# Prefetch, concurrency and recycling belong to a lane: `worker.runtime.process.lane`. A bare worker command gets this.
_prefetch = _os.environ.get("CELERY_WORKER_PREFETCH_MULTIPLIER", "").strip().lower()
worker_prefetch_multiplier = (
    0 if _prefetch == "off" else _whole_number(_os.environ, "CELERY_WORKER_PREFETCH_MULTIPLIER", 1, least=0, most=1000)
)

# A hard limit ends the pool child; a thread cannot be ended, so its tasks limit their own calls.
task_annotations = {
    queue.task: {"time_limit": queue.time_limit_s} for queue in _policy.queues.values() if queue.pool == "prefork"
}
worker_proc_alive_timeout = 30.0
enable_utc = True
timezone = "UTC"
