"""Hold jobs: one lease per worker process, renewed by a thread of its own until the last job has settled.

The lease belongs to the process, not to a connection or a channel, so reconnects and drains do not touch it. The same
thread repeats settles that found Redis away, and sweeps the leases that other processes left behind.
"""

import atexit
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from uuid import uuid4

from redis.exceptions import RedisError

from worker.broker import Broker, Delivery
from worker.policy import load as load_policy

logger = logging.getLogger(__name__)

Settle = Callable[[Broker, Delivery], str]


class Lease:
    """What one process holds of one broker. Safe to share between threads."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        policy = load_policy().lease
        self.duration_s = policy.duration_s
        self.renew_every_s = policy.renew_every_s
        self._queues: set[str] = set()
        self._unsettled: deque[tuple[Delivery, Settle]] = deque()
        self._settling = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def keep(self, queues: list[str]) -> None:
        """Renew from now on, in the background, until the process ends. Called before each fetch; cheap."""
        self._queues.update(queues)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="forebay-lease", daemon=True)
                    self._thread.start()
                    atexit.register(self.leave)

    def settle(self, delivery: Delivery, settle: Settle) -> None:
        """Settle a delivery now, or as soon as Redis answers again; the lease is renewed until then."""
        try:
            said = settle(self.broker, delivery)
        except RedisError as error:
            logger.warning("job %s cannot be settled yet, will be repeated: %s", delivery.id, error)
            with self._settling:
                self._unsettled.append((delivery, settle))
            return
        if said == "late":
            logger.warning("job %s was given to another worker meanwhile; this run changes nothing", delivery.id)

    def _run(self) -> None:
        while True:
            try:
                self.broker.renew(self.owner, self.duration_s, self._about())
                rescued = self.broker.sweep()
                if rescued:
                    logger.warning("rescued %d jobs from workers that vanished", rescued)
                self._settle_again()
            except RedisError as error:
                logger.warning("lease of %s not renewed, will be repeated: %s", self.owner, error)
            except Exception:  # the thread must outlive whatever it meets, or every job here is run again elsewhere
                logger.exception("renewing the lease of %s failed, will be repeated", self.owner)
            if self._stopped.wait(self.renew_every_s):
                return

    def _settle_again(self) -> None:
        with self._settling:
            for _ in range(len(self._unsettled)):
                delivery, settle = self._unsettled.popleft()
                try:
                    settle(self.broker, delivery)
                except BaseException:
                    self._unsettled.append((delivery, settle))  # behind the others, which may fare better
                    raise

    def _about(self) -> dict[str, str]:
        node = os.environ.get("FOREBAY_NODE") or socket.gethostname()
        return {"node": node, "pid": str(os.getpid()), "queues": ",".join(sorted(self._queues))}

    def leave(self) -> None:
        """End the lease; what is still held is rescued by whoever sweeps next."""
        if self.owner.split(":")[-2] != str(os.getpid()):  # a forked child inherits the handler, not the lease
            return
        self._stopped.set()
        try:
            self._settle_again()
            left = self.broker.leave(self.owner)
        except RedisError as error:
            logger.warning("lease of %s not ended, it will run out: %s", self.owner, error)
        else:
            if left:
                logger.warning("%d jobs are left behind and will be rescued", left)


_leases: dict[tuple[int, str], Lease] = {}
_guard = threading.Lock()


def leave_all() -> None:
    """End this process's leases, before it becomes another program."""
    for lease in list(_leases.values()):
        lease.leave()


def of_process(uri: str, make_broker: Callable[[], Broker]) -> Lease:
    """Return this process's lease on the broker at ``uri``; a forked child gets one of its own."""
    name = (os.getpid(), uri)
    with _guard:
        if name not in _leases:
            _leases[name] = Lease(make_broker())
        return _leases[name]
