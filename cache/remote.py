"""Talk to the cache's Redis without ever waiting for it long: the second tier, with its scripts."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import NoPermissionError, OutOfMemoryError, RedisError
from redis.retry import Retry

from cache import keys, scripts
from cache.errors import Away, Full
from cache.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
_Sentinel: Any = redis.Sentinel  # its constructor is not typed

#: One wait for a leader's end; between two of them a waiter looks whether it is wanted no more.
WAIT_S = 0.25
#: How long a Redis that is full is only read from.
FULL_S = 5.0
#: How long an ended flight's mark stays for those who come to wait for it late.
MARK_S = 30.0
#: Longer than any value lives: once it is gone, so is what was kept under it.
GENERATION_S = 400 * 86400
SCAN_COUNT = 500
#: Ours are ASCII. Whatever else stands in Redis is read too: an error would reach who only wants a value.
TOKENS = "latin-1"


class Claims(NamedTuple):
    """What a claim brought: values with their seconds left, keys that are ours, keys that others (by token) compute."""

    generation: str
    values: dict[str, tuple[bytes, float]]
    mine: list[str]
    others: dict[str, str]


class Remote:
    """A Redis that may be away. Every method raises `Away` then; safe to share between threads, not with a fork.

    The first call that finds it away pays `Settings.timeout_s`; the others do not ask until `probe`, which a thread
    in the background calls, has found it again.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._guard = threading.Lock()
        self._clients: dict[bool, Any] = {}
        self._scripts: dict[str, Any] = {}
        self._is_away = False
        self._full_until = 0.0
        self._told_full = False

    @property
    def is_away(self) -> bool:
        return self._is_away

    @property
    def is_full(self) -> bool:
        """Whether nothing is to be written for now."""
        return time.monotonic() < self._full_until

    def read(self, wanted: Sequence[str]) -> dict[str, bytes]:
        """Return those values that there are."""
        found = self.ask(lambda client: client.mget(wanted))
        return {key: value for key, value in zip(wanted, found, strict=True) if value is not None}

    def write(self, values: Mapping[str, bytes], ttl_s: float) -> None:
        """Keep values, in one round trip."""
        self._writable()

        def send(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            for key, value in values.items():
                pipeline.set(key, value, px=_ms(ttl_s))
            pipeline.execute()

        self.ask(send)

    def claim(self, kind: str, wanted: Sequence[str], token: str) -> Claims:
        """Read values and claim those that nobody computes, in one step. Raises also `Full`."""
        self._writable()
        names = [keys.generation(kind, self.settings.prefix), *wanted]
        said = self._run("claim", names, [token, _ms(self.settings.lease_s)])
        claims = Claims(said[0].decode(TOKENS), {}, [], {})
        for key, (what, *rest) in zip(wanted, said[1:], strict=True):
            if what == b"value":
                claims.values[key] = (rest[0], rest[1] / 1000)
            elif what == b"mine":
                claims.mine.append(key)
            else:
                claims.others[key] = rest[0].decode(TOKENS)
        return claims

    def land(self, kind: str, token: str, generation: str, values: Mapping[str, bytes | None], ttl_s: float) -> int:
        """Keep what a claim's holder computed (None: not to be kept) and end its flights; return how many were kept."""
        prefix = self.settings.prefix
        names = [keys.generation(kind, prefix), keys.landed(token, prefix), *values]
        pairs = [part for value in values.values() for part in ((0, b"") if value is None else (_ms(ttl_s), value))]
        return int(self._run("land", names, [token, generation, _ms(MARK_S), *pairs]))

    def leave(self, token: str, held: Sequence[str], mark: str) -> None:
        """End flights without a value; ``mark`` tells who waits to try in turn (``retry``) or each ``alone``."""
        self._run("leave", [keys.landed(token, self.settings.prefix), *held], [token, mark, _ms(MARK_S)])

    def renew(self, token: str, held: Sequence[str]) -> int:
        """Hold flights for another lease; return how many are still held."""
        return int(self._run("renew", held, [token, _ms(self.settings.lease_s)]))

    def wait(self, token: str) -> str:
        """Wait `WAIT_S` for the end of a token's flights; return its mark, or nothing."""
        # Moved onto itself, the mark wakes one waiter after the other and stays.
        name = keys.landed(token, self.settings.prefix)
        said = self.ask(lambda client: client.blmove(name, name, WAIT_S, "LEFT", "RIGHT"), patient=True)
        return said.decode(TOKENS) if said else ""

    def generations(self, kinds: Sequence[str]) -> dict[str, str]:
        """Return the generation of each kind."""
        found = self.ask(lambda client: client.mget([keys.generation(each, self.settings.prefix) for each in kinds]))
        return {kind: (each or b"").decode(TOKENS) for kind, each in zip(kinds, found, strict=True)}

    def begin(self, kind: str, generation: str) -> None:
        """Begin a kind's next generation: what is being computed in the last one will not be kept."""
        name = keys.generation(kind, self.settings.prefix)
        self.ask(lambda client: client.set(name, generation, px=_ms(GENERATION_S)))

    def versions(self, kept: Sequence[str], marks: Sequence[str], token: str) -> dict[str, str]:
        """Return each version's token; those of ``kept`` that are missing begin with this one. Raises also `Full`."""
        names = [*kept, *marks]
        args = [token, _ms(GENERATION_S), len(kept)]
        said = self._run("versions", [keys.version(name, self.settings.prefix) for name in names], args)
        return {name: each.decode(TOKENS) for name, each in zip(names, said, strict=True)}

    def end_versions(self, kept: Sequence[str], marks: Sequence[str]) -> None:
        """End versions, in one round trip; only marks need memory."""

        def send(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            if kept:
                pipeline.unlink(*(keys.version(name, self.settings.prefix) for name in kept))
            for name in marks:
                pipeline.set(keys.version(name, self.settings.prefix), uuid4().hex, px=_ms(GENERATION_S))
            pipeline.execute()

        self.ask(send)

    def probe(self) -> None:
        """Ask whether Redis answers again, and whether it has memory to spare. Called in the background."""
        client = self._client(patient=False)
        try:
            client.ping()
            memory = client.info("memory")
        except NoPermissionError:
            memory = {}
        except (RedisError, OSError) as error:
            self._fail(error)
            raise Away(str(error)) from error
        if self._is_away:
            self._is_away = False
            logger.info("the cache's Redis answers again")
        most, used = memory.get("maxmemory", 0), memory.get("used_memory", 0)
        if most and memory.get("maxmemory_policy") == "noeviction" and used > most * self.settings.share_of_memory:
            self._fill(f"{used} of {most} bytes are used")
        elif not self.is_full:
            self._told_full = False

    def ask(self, do: Callable[[Any], T], *, patient: bool = False) -> T:
        """Do something with a client; ``patient`` for what blocks. Raises `Away`, and `Full`."""
        if self._is_away:
            raise Away("was away a moment ago")
        try:
            return do(self._client(patient))
        except OutOfMemoryError as error:
            self._fill(str(error))
            raise Full(str(error)) from error
        except (RedisError, OSError) as error:
            self._fail(error)
            raise Away(str(error)) from error

    def _run(self, name: str, names: Sequence[str], args: Sequence[Any]) -> Any:
        return self.ask(lambda _: self._scripts[name](keys=names, args=args))

    def _writable(self) -> None:
        if self.is_full:
            raise Full("was full a moment ago")

    def _fail(self, error: Exception) -> None:
        with self._guard:
            told, self._is_away = self._is_away, True
        if not told:
            logger.warning("the cache's Redis is away (%s); results are computed until it answers again", error)

    def _fill(self, why: str) -> None:
        with self._guard:
            told, self._told_full = self._told_full, True
            self._full_until = time.monotonic() + FULL_S
        if not told:
            logger.warning("the cache's Redis is full (%s); nothing is added until it has memory again", why)

    def _client(self, patient: bool) -> Any:
        with self._guard:
            if patient not in self._clients:
                made = connect(self.settings, self.settings.timeout_s + (WAIT_S if patient else 0))
                if not patient:
                    self._scripts = scripts.load(made)
                self._clients[patient] = made
            return self._clients[patient]


def connect(settings: Settings, timeout_s: float) -> redis.Redis:
    """Return a client that gives up after a time; nothing is sent yet.

    A connection that the server has closed meanwhile is replaced once; nothing else is tried again.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": settings.timeout_s,
        "retry": Retry(NoBackoff(), 1, supported_errors=(NotConnected,)),
        "socket_keepalive": True,
    }
    if not settings.url.startswith("sentinel"):
        # Celery spells it CERT_NONE, redis-py none.
        url = re.sub(r"ssl_cert_reqs=CERT_(\w+)", lambda found: f"ssl_cert_reqs={found[1].lower()}", settings.url)
        return redis.Redis.from_url(url, **options)
    parts = [urlsplit(each) for each in settings.url.split(";")]
    hosts = [(each.hostname or "127.0.0.1", each.port or 26379) for each in parts]
    options |= {"db": int(parts[0].path.strip("/") or 0), "password": parts[0].password}
    sentinel: Any = _Sentinel(hosts, sentinel_kwargs={"socket_timeout": settings.timeout_s}, **options)
    client: redis.Redis = sentinel.master_for(settings.master)
    return client


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
