"""Every private name of kombu, Celery, billiard and SQLAlchemy that this project overrides or reads, in one table.

A minor version of these libraries may change them, so pyproject.toml pins kombu's, Celery's and SQLAlchemy's. Before a
newer one is allowed, the test of this table says what changed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Private:
    """One private name.

    ``owner`` is ``module:Class``. ``signature`` is that of a method, empty for an attribute of an instance, which
    is then named in the class's source. ``used_by`` is the module of ours, ``why`` what we rely on.
    """

    owner: str
    name: str
    signature: str
    used_by: str
    why: str


_CHANNEL = "kombu.transport.redis:Channel"
_REQUEST = "celery.worker.request:Request"
_TRANSPORT = "worker.runtime.transport"
_OWN_REQUEST = "worker.runtime.request"

PRIVATE = (
    Private(_CHANNEL, "_brpop_start", "(self, timeout=None)", _TRANSPORT, "overridden: sends the fetch, or waits idle"),
    Private(_CHANNEL, "_brpop_read", "(self, **options)", _TRANSPORT, "overridden: reads the reply"),
    Private(_CHANNEL, "_poll_error", "(self, type, **options)", _TRANSPORT, "overridden: gives up a lost fetch"),
    Private(_CHANNEL, "_put", "(self, queue, message, **kwargs)", _TRANSPORT, "overridden: accepts a task message"),
    Private(_CHANNEL, "_purge", "(self, queue)", _TRANSPORT, "overridden: cancels, job by job"),
    Private(
        _CHANNEL,
        "_delete",
        "(self, queue, exchange, routing_key, pattern, *args, **kwargs)",
        _TRANSPORT,
        "overridden: purges first",
    ),
    Private(_CHANNEL, "_queue_bind", "(self, exchange, routing_key, pattern, queue)", _TRANSPORT, "overridden: script"),
    Private(_CHANNEL, "_get_message_priority", "(self, message, reverse=False)", _TRANSPORT, "called: priority step"),
    Private(_CHANNEL, "_get_pool", "(self, asynchronous=False)", "worker.records.broker", "called: its connections"),
    Private(_CHANNEL, "_flush_brpop_reauth", "(self)", _TRANSPORT, "called after each reply, as kombu does"),
    Private(_CHANNEL, "_in_poll", "", _TRANSPORT, "set: the connection of the command under way"),
    Private(_CHANNEL, "_brpop_sent_at", "", _TRANSPORT, "set: kombu's health check reads it"),
    Private(_CHANNEL, "_queue_cycle", "", _TRANSPORT, "read: queues in their turn"),
    Private(_CHANNEL, "_expires", "", _TRANSPORT, "read: queues that expire hold no jobs"),
    Private("kombu.transport.virtual.base:QoS", "_flush", "(self)", _TRANSPORT, "called before unstarted jobs go back"),
    Private("kombu.transport.virtual.base:QoS", "_delivered", "", _TRANSPORT, "read: what reached the consumer"),
    Private("kombu.transport.virtual.base:Transport", "_deliver", "(self, message, queue)", _TRANSPORT, "called"),
    Private("kombu.transport.virtual.base:Message", "_raw", "", _OWN_REQUEST, "read: the message for a next attempt"),
    Private("kombu.message:Message", "_decode", "(self)", _OWN_REQUEST, "called: a body that was left unread"),
    Private("kombu.message:Message", "_decoded_cache", "", _TRANSPORT, "set: leaves a batch's body unread"),
    Private(
        _REQUEST,
        "_announce_revoked",
        "(self, reason, terminated, signum, expired)",
        _OWN_REQUEST,
        "overridden: settles before the result is stored",
    ),
    Private(_REQUEST, "_request_dict", "", _OWN_REQUEST, "written: delivery and charge travel to the run"),
    Private(_REQUEST, "_payload", "", _OWN_REQUEST, "overridden: reads a batch's body for its callbacks"),
    Private(_REQUEST, "_argsrepr", "", _OWN_REQUEST, "written: hides arguments"),
    Private(_REQUEST, "_kwargsrepr", "", _OWN_REQUEST, "written: hides arguments"),
    Private(_REQUEST, "_message", "", _OWN_REQUEST, "read: tag and channel of the delivery"),
    Private(
        "celery.backends.redis:RedisBackend",
        "_set",
        "(self, key, value, expires=None)",
        "worker.runtime.results",
        "overridden: stores by script",
    ),
    Private("billiard.pool:Pool", "_cache", "", "worker.runtime.pools.prefork", "read: runs under way"),
    Private("billiard.pool:ApplyResult", "_write_to", "", "worker.runtime.pools.prefork", "read: a child has it"),
    Private("billiard.pool:ApplyResult", "_accepted", "", "worker.runtime.pools.prefork", "set: the flush spares it"),
    Private("billiard.pool:ApplyResult", "_error_callback", "", "worker.runtime.pools.prefork", "read: finds batches"),
    Private("sqlalchemy.pool:QueuePool", "_do_get", "(self)", "db.pool", "overridden: waiters in turn"),
    Private("sqlalchemy.pool:QueuePool", "_do_return_conn", "(self, record)", "db.pool", "overridden: frees a place"),
    Private("sqlalchemy.pool:QueuePool", "_max_overflow", "", "db.pool", "read: how many connections there may be"),
)
