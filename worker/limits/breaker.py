"""Leave a provider alone that fails again and again: breakers that all workers share, one for each model's address.

A breaker is closed, and calls go; after some failures in a row within a while it is open, and none goes; then it is
half-open, and one call of one worker goes alone to see. An answer closes it, a failure opens it for twice as long.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from redis.exceptions import RedisError

from worker.policy.queue import Breaker as Policy
from worker.records.broker import Broker

logger = logging.getLogger(__name__)

End = Literal["answered", "failed", "unknown"]


class BreakerOpen(Exception):
    """The call is not to be made; in ``retry_after_s`` the breaker may let one through."""

    def __init__(self, name: str, retry_after_s: float) -> None:
        super().__init__(name, retry_after_s)
        self.name = name
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Ticket:
    """Leave for one call, whose end must be told. ``is_quiet``: an answer would say nothing new."""

    name: str
    probe: str = ""
    is_quiet: bool = False


@dataclass(frozen=True)
class Seen:
    """One breaker that counts failures or is not closed. ``half_opens_in_s``: 0 unless it is open."""

    name: str
    state: str
    failures: int
    trips: int
    half_opens_in_s: float


class Breakers:
    """The breakers that one run's calls meet. Without a broker, or while Redis is away, every call may go."""

    def __init__(self, broker: Broker | None, policy: Policy) -> None:
        self.broker, self.policy = broker, policy

    def ask(self, name: str, limit_s: float) -> Ticket:
        """Return leave for a call that takes at most ``limit_s``. Raises `BreakerOpen`.

        A probe whose end is never told is given up after that time: its worker has died.
        """
        if self.broker is None:
            return Ticket(name, is_quiet=True)
        token = uuid4().hex
        try:
            said, wait_s = self.broker.run("breaker_ask", name, token, limit_s, self.policy.open_s)
        except RedisError as error:
            logger.warning("a call goes without asking the breaker of %s: %s", name, error)
            return Ticket(name)
        if said == b"open":
            raise BreakerOpen(name, float(wait_s))
        return Ticket(name, token if said == b"probe" else "", is_quiet=said == b"closed")

    def tell(self, ticket: Ticket, end: End) -> None:
        """Say how a call ended: answered (also with a refusal), failed, or unknown (cancelled, never made)."""
        if self.broker is None or (end == "unknown" and not ticket.probe) or (end == "answered" and ticket.is_quiet):
            return
        policy = self.policy
        limits = (policy.failures, policy.within_s, policy.open_s, policy.open_max_s)
        try:
            state = self.broker.run("breaker_tell", ticket.name, ticket.probe, end, *limits)
        except RedisError as error:
            logger.warning("the breaker of %s is not told that a call %s: %s", ticket.name, end, error)
            return
        if state == b"open" and end == "failed":
            logger.warning("the breaker of %s is open: the provider failed again and again", ticket.name)
        elif ticket.probe and state == b"closed":
            logger.info("the breaker of %s is closed again", ticket.name)


def breakers(broker: Broker) -> list[Seen]:
    """Return every breaker that counts failures, is open or is half-open. Raises what redis-py raises."""
    return [
        Seen(name.decode(), state.decode(), int(failures), int(trips), float(opens_s))
        for name, state, failures, trips, opens_s in broker.run("breaker_list")
    ]
