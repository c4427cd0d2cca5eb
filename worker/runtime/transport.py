"""Carry messages between Celery and Redis so that none is lost: kombu's Redis transport with a fetch of its own.

kombu pops a message with BRPOP and records it as unacknowledged in a later round trip; a worker killed in between
loses the job (kombu #305, #1836, celery #4354). Here one script pops and records. While there is nothing to fetch the
channel blocks on a "bell" list that accept rings, never on a list of jobs.

The private parts of kombu that it relies on are listed in `worker.runtime.private`. Everything else (connections, TLS,
Sentinel, fanout, remote control, events, polling paused while prefetch is full, half-open connections found by the
health check) is kombu's.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from queue import Empty
from time import monotonic
from typing import Any

from celery import current_task
from kombu import Connection
from kombu.asynchronous import get_event_loop
from kombu.message import Message
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError

from worker.limits import gates
from worker.policy.policy import load as load_policy
from worker.records import message, scripts
from worker.records.broker import (
    NO_RULES,
    Broker,
    Delivery,
    Fetched,
    Submission,
    Wanted,
    fetch_args,
    full,
    of_channel,
    parse_fetched,
)
from worker.records.reason import Reason
from worker.runtime import bodies, gathering, lease

logger = logging.getLogger(__name__)

#: An idle channel looks again after this long even if no bell rang: plain Celery producers do not ring.
NAP_S = 1.0
#: A nap shorter than this is ended by a timer of our own.
PRECISE_S = 0.5
#: The most jobs that one fetch hands out.
HANDFUL = 64
#: A mark in a message's delivery_info: it will be in a batch.
GATHERED = "forebay_gathered"


class QoS(kombu_redis.QoS):  # type: ignore[misc]
    """What a channel has handed out and not settled. Redis has it already: the fetch script recorded it."""

    def append(self, message: Message, delivery_tag: str) -> None:
        virtual.QoS.append(self, message, delivery_tag)

    def settle(self, delivery_tag: str, settle: lease.Settle) -> None:
        """Settle a delivery with one of the broker's steps, then make room for the next. Any thread may call it.

        While the prefetch window is full, the channel asks Redis for nothing, so nothing but a timer would end the
        event loop's poll: a settle that opens the window wakes the loop.
        """
        self.channel.lease.settle(Delivery.of_tag(delivery_tag), settle)
        was_full = not self.can_consume()
        virtual.QoS.ack(self, delivery_tag)
        if was_full:
            self.channel.wake()

    def ack(self, delivery_tag: str) -> None:
        self.settle(delivery_tag, Broker.done)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            self.settle(delivery_tag, Broker.release)
        else:
            self.settle(
                delivery_tag, lambda broker, delivery: broker.bury(delivery, Reason.REJECTED, "rejected by worker")
            )

    def restore_unacked(self, client: object = None) -> list[object]:
        """Give back what has not started. kombu gives back everything when a connection closes, running jobs too."""
        self._flush()
        for tag in list(self._delivered):
            self.channel.lease.settle(
                Delivery.of_tag(tag), lambda broker, delivery: broker.release(delivery, unless_started=True)
            )
        self._delivered.clear()
        return []

    def restore_visible(self, *args: object, **kwargs: object) -> None:
        """Do nothing: the lease's thread sweeps, on a timer, idle or not."""


class Channel(kombu_redis.Channel):  # type: ignore[misc]
    """A kombu channel whose fetch is one script."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._plain_queues: set[str] = set()  # consumed without acknowledgement: replies to remote control
        self._idle = False
        self._nap_s = NAP_S
        self._deaf: frozenset[str] = frozenset()  # the queues whose bells do not wake it
        self._alarm: Any = None
        self._awaiting = "EVALSHA"
        self._fetch = 0  # the number of the fetch under way
        super().__init__(*args, **kwargs)
        self.lease = lease.of_process(self.connection.client.as_uri(include_password=True), self._make_broker)

    @property
    def broker(self) -> Broker:
        """The records of jobs behind this channel."""
        return self.lease.broker

    def _make_broker(self) -> Broker:
        return of_channel(self)

    # Publishing: Celery's own producers (retries, chains, plain apply_async with this transport).

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """Accept a task message; pass any other message on as kombu does, and ring."""
        running = _running()
        if running and running.id == message.get("headers", {}).get("id"):  # Celery's retry and replace
            self.broker.follow(running, self._submission(queue, message))
            return
        if queue in self._expires or "id" not in message.get("headers", {}):
            super()._put(queue, message, **kwargs)
            self._ring(queue)
            return
        submission = self._submission(queue, message)
        if running:  # chains, links, chords: refused, the job that sends them could not end
            self.broker.run("publish", *replace(submission, max_length=0).args())
            return
        # accepted at once, in no batch of kombu's: an id makes a repeat harmless, and refusals are heard
        reply = self.broker.run("accept", *submission.args())
        if bytes_to_str(reply[0]) == "full":
            raise full(submission, reply)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if queue in self._expires or self.typeof(exchange).type == "fanout":
            try:
                super()._queue_bind(exchange, routing_key, pattern, queue)
            except OutOfMemoryError:  # remote control may miss replies; jobs go on
                logger.warning("queue %s is not bound: Redis is out of memory", queue)
        else:
            binding = self.sep.join([routing_key or "", pattern or "", queue or ""])
            self.broker.run("bind", self.keyprefix_queue % (exchange,), binding)

    def _submission(self, queue: str, payload: dict[str, Any]) -> Submission:
        headers = payload["headers"]
        due = _epoch(headers.get("eta"))
        known = load_policy().queues.get(queue)
        return Submission(
            id=str(headers["id"]),
            queue=queue,
            step=self.priority(self._get_message_priority(payload, reverse=False)),
            task=str(headers.get("task", "")),
            message=dumps({**payload, "headers": {**headers, "eta": None}}),
            due="" if due is None else f"{due:.6f}",
            max_length=known.max_length if known else 0,
        )

    def _ring(self, queue: str) -> None:
        bell = self.broker.keys.bell(queue)
        pipeline = self.broker.redis.pipeline(transaction=False)
        pipeline.lpush(bell, "1").ltrim(bell, 0, 63).expire(bell, 60).execute()

    # Fetching on the event loop: send one command, read its reply when the socket is readable.

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        if no_ack:
            self._plain_queues.add(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        wanted = self._wanted(self._queue_cycle.consume(len(self.active_queues)))
        if not wanted:
            return
        connection = self.client.connection
        self._in_poll = connection
        self._brpop_sent_at = monotonic()
        if self._idle:
            self._awaiting = "BRPOP"
            bells = [self.lease.owner, *(each.queue for each in wanted if each.queue not in self._deaf)]
            connection.send_command("BRPOP", *map(self.broker.keys.bell, bells), self._nap_s)
            self._set_alarm()
        else:
            self._awaiting = "EVALSHA"
            args = self._fetch_args(wanted, self._room())
            connection.send_command("EVALSHA", self.broker.scripts["fetch"].sha, 0, self.broker.keys.prefix, *args)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            fetched = self._read_reply(**options)
            if not fetched:
                raise Empty
            self._queue_cycle.rotate(fetched[-1].queue)
            self._hand_over(fetched)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _read_reply(self, **options: Any) -> list[Fetched]:
        """Read the reply that is due: none after a bell or a nap, and the next command is a fetch then."""
        try:
            reply = self.client.parse_response(self.client.connection, self._awaiting, **options)
        except NoScriptError:
            self.broker.redis.script_load(scripts.source("fetch"))
            return []
        except self.connection_errors:
            self._break_off()
            raise
        except ResponseError as error:  # read-only, still loading: come back over a new connection, with backoff
            self._break_off()
            raise RedisConnectionError(str(error)) from error
        if self._awaiting == "BRPOP":
            self._idle = False
            self._stop_alarm()
            return []
        fetched = parse_fetched(reply)
        self._idle = not fetched.jobs
        self._deaf = fetched.deaf
        self._nap_s = NAP_S if fetched.nap_s is None else min(NAP_S, max(0.001, fetched.nap_s))
        return fetched.jobs

    def _break_off(self) -> None:
        """Give up the command under way. What a fetch leased whose reply is not read goes back."""
        if self._awaiting == "EVALSHA":
            self.lease.lose(self._fetch)
        if self.client.connection is not None:
            self.client.connection.disconnect()

    def _poll_error(self, type: str, **options: Any) -> None:  # noqa: A002 - kombu's name
        if type == "LISTEN":
            super()._poll_error(type, **options)
        else:
            try:
                self.client.parse_response(self.client.connection, self._awaiting)
            finally:
                self._break_off()

    # Naps and what ends them.

    def wake(self) -> None:
        """Let the event loop fetch again because there is room. Any thread may call it.

        ``Hub.call_soon`` interrupts the loop's poll when another thread calls it (kombu 5.7).
        """
        hub = get_event_loop()
        if self._in_poll and self._awaiting == "BRPOP":
            self._ring_self()
        elif hub is not None:
            hub.call_soon(_nothing)

    def _set_alarm(self) -> None:
        """End a short nap in time: Redis itself ends a blocked pop only about every 100 ms."""
        hub = get_event_loop()
        if hub is not None and self._nap_s < PRECISE_S:
            self._alarm = hub.call_later(self._nap_s, self._ring_self)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring_self(self) -> None:
        try:
            self._ring(self.lease.owner)
        except RedisError as error:  # the nap ends by itself
            logger.debug("own bell not rung: %s", error)

    def _wanted(self, queues: list[str]) -> list[Wanted]:
        """Return the queues to fetch from and how: without those that have no room for another batch."""
        wanted = []
        for queue in queues:
            gatherer = gathering.of_queue.get(queue)
            if queue in self._plain_queues:
                wanted.append(Wanted(queue, "plain"))
            elif gatherer is None:
                wanted.append(Wanted(queue))
            elif gatherer.room > 0:
                wanted.append(Wanted(queue, "batch", gatherer.room))
        return wanted

    def _room(self) -> int:
        free = self.qos.can_consume_max_estimate()
        return HANDFUL if free is None else max(1, min(HANDFUL, free))

    def _fetch_args(self, wanted: list[Wanted], most: int, gated: bool = True) -> list[str | int | float]:
        leased = tuple(sorted(each.queue for each in wanted if each.mode != "plain"))
        if leased:
            self.lease.keep(leased)
        self._fetch = next(self.broker.fetches)
        rules = gates.rules(leased, gates.enabled()) if gated else NO_RULES
        return fetch_args(self.lease.owner, self.lease.duration_s, wanted, most, self._fetch, rules)

    def _fetch_now(self, wanted: Wanted, most: int, gated: bool) -> list[Fetched]:
        """Fetch in the caller, outside of the event loop."""
        args = self._fetch_args([wanted], most, gated)
        number = self._fetch
        try:
            return parse_fetched(self.broker.run("fetch", *args)).jobs
        except BaseException:  # an interrupt too: the script may have run
            self.lease.lose(number)
            raise

    # Handing over: from a fetched message to the consumer's callback.

    def message_to_python(self, raw_message: Any) -> Message:
        """Make kombu's message. The body of one that is to be in a batch is read once: where the batch runs."""
        made: Message = super().message_to_python(raw_message)
        if (made.delivery_info or {}).pop(GATHERED, False) and bodies.may_wait(made):
            made._decoded_cache = bodies.UNREAD
        return made

    def _hand_over(self, fetched: list[Fetched]) -> None:
        """Deliver fetched messages in order; what could not be delivered goes back."""
        undelivered = list(fetched)
        try:
            while undelivered:
                self._deliver(undelivered.pop(0))
        finally:
            gathering.close_all()
            self._give_back(undelivered)

    def _deliver(self, fetched: Fetched) -> None:
        payload = self._payload(fetched)
        if payload is None:
            return
        try:
            self.connection._deliver(*payload)
        except Exception as error:
            # what reached the consumer is the consumer's; what did not is in nobody's hands
            if not fetched.delivery.number or fetched.delivery.tag in self.qos._delivered:
                raise
            fault = f"{type(error).__name__}: {error}"
            self.lease.settle(fetched.delivery, lambda broker, delivery: broker.bury(delivery, Reason.MALFORMED, fault))

    def _give_back(self, fetched: list[Fetched]) -> None:
        for each in fetched:
            if each.delivery.number:
                self.lease.settle(each.delivery, Broker.release)

    def _payload(self, fetched: Fetched) -> tuple[dict[str, Any], str] | None:
        """Return a message as kombu wants it and its queue, or None when it is not to be delivered."""
        if not fetched.delivery.number:
            return loads(fetched.message), fetched.queue
        try:
            payload = message.read(fetched.message)
            due = _epoch(payload["headers"].get("eta"))
        except (ValueError, OverflowError) as error:
            fault = str(error)
            self.lease.settle(fetched.delivery, lambda broker, delivery: broker.bury(delivery, Reason.MALFORMED, fault))
            return None
        if due is not None:  # from a plain producer: a delay waits in Redis, in no worker's memory
            later, moment = message.next_run(payload, spent=0), f"{due:.6f}"
            self.lease.settle(
                fetched.delivery, lambda broker, delivery: broker.reschedule(delivery, later, moment, 0, "")
            )
            return None
        payload["properties"]["delivery_tag"] = fetched.delivery.tag
        gatherer = gathering.of_queue.get(fetched.queue)
        if gatherer is not None and payload["headers"].get("task") == gatherer.task:
            payload["properties"]["delivery_info"][GATHERED] = True
        payload["properties"]["delivery_info"]["charge"] = fetched.charge
        if fetched.delivery.number > 1:
            payload["properties"]["delivery_info"]["redelivered"] = True
            payload["headers"]["redelivered"] = True
        return payload, fetched.queue

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Message | None:
        """Fetch one message in the caller (SimpleQueue), leased like any other unless ``no_ack``."""
        for fetched in self._fetch_now(Wanted(queue, "plain" if no_ack else "lease"), 1, gated=True):
            payload = self._payload(fetched)
            if payload is not None:
                received = self.Message(payload[0], channel=self)
                if not no_ack:
                    self.qos.append(received, received.delivery_tag)
                return received
        return None

    # Ending.

    def close(self) -> None:
        """Close the channel. What is under way is broken off."""
        if self._in_poll and self.__dict__.get("client") is not None:
            self._break_off()
            self._in_poll = None
        super().close()

    def _purge(self, queue: str) -> int:
        """Cancel every waiting job of a queue, one by one: each keeps a record that says so."""
        purged = 0
        drop: Callable[[Broker, Delivery], str] = lambda broker, delivery: broker.drop(delivery, "cancelled")  # noqa: E731
        while True:
            fetched = self._fetch_now(Wanted(queue), HANDFUL, gated=False)
            if not fetched:
                return purged
            for each in fetched:
                self.lease.settle(each.delivery, drop)
            purged += len(fetched)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        if queue not in self.auto_delete_queues and queue not in self._expires:
            self._purge(queue)
        super()._delete(queue, *args, **kwargs)


class Transport(kombu_redis.Transport):  # type: ignore[misc]
    """Redis, Valkey or anything that speaks their protocol and runs their scripts."""

    Channel = Channel
    implements = kombu_redis.Transport.implements.extend(batch_publish=False)


class SentinelChannel(Channel, kombu_redis.SentinelChannel):  # type: ignore[misc]
    """The same behind Redis Sentinel."""


class SentinelTransport(kombu_redis.SentinelTransport):  # type: ignore[misc]
    """Redis Sentinel: ``sentinel://`` URLs."""

    Channel = SentinelChannel
    implements = kombu_redis.SentinelTransport.implements.extend(batch_publish=False)


# A URL made from a connection (for logs, for Flower) names our transports by the scheme that they were chosen for.
Connection.resolve_aliases.update(
    {"worker.runtime.transport:Transport": "redis", "worker.runtime.transport:SentinelTransport": "sentinel"}
)


def _nothing() -> None:
    """Do nothing but turn the event loop once."""


def _running() -> Delivery | None:
    """Return the delivery that runs in this thread, None when none does."""
    if not current_task:
        return None
    tag = current_task.request.get("forebay_delivery")
    return Delivery.of_tag(tag) if tag else None


def _epoch(eta: Any) -> float | None:
    """Return an eta header as seconds since the epoch, None when there is none. Raises `ValueError`."""
    if not eta:
        return None
    if not isinstance(eta, str):
        raise ValueError(f"eta: {eta!r} is not an ISO 8601 time")
    when = datetime.fromisoformat(eta)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
