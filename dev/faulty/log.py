"""What the faulty provider remembers of its requests."""

from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any

LONGEST = 200_000  # entries; the counts know of all requests
CLIENT_LEFT = 499  # nginx's status for a client that hung up before its answer began


@dataclass
class Entry:
    """One request."""

    at_s: float  # by this machine's monotonic clock (`time.monotonic()`), the instant at which limits counted it
    path: str
    model: str = ""
    stream: bool = False
    inputs: int = 0  # texts to embed, or messages
    tokens: int = 0  # prompt and completion, as the answer says
    counted: int = 0  # tokens as the limit counts them (`tokens_counted`)
    job: str | None = None  # its Idempotency-Key header, else its X-Job-Id
    status: int | None = None  # None: no answer has begun
    fault: str | None = None
    hung_up: bool = False  # the client left before it had its answer
    took_s: float | None = None  # None: not yet over
    texts: list[str] = field(default_factory=list)  # with `log_texts`


@dataclass
class Counts:
    """Totals since the last reset; `ended` and what follows count requests that are over."""

    requests: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    most_served_at_once: int = 0  # of those in flight, without those that queued for `concurrent`
    ended: int = 0
    answered: int = 0  # status 200, faults included
    inputs: int = 0  # of answered requests
    tokens: int = 0  # of answered requests
    limited: int = 0  # 429 for a limit, without those that a fault made up
    hung_up: int = 0
    paths: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)


class Record:
    """The log and its totals."""

    def __init__(self) -> None:
        """Start empty."""
        self.in_flight = 0
        self.reset(0.0)

    def reset(self, now_s: float) -> None:
        """Forget all that has come before; what is still in flight of it counts as that and nothing more."""
        self._since_s = now_s
        self.entries: deque[Entry] = deque(maxlen=LONGEST)
        self._counts = Counts(most_in_flight=self.in_flight)
        self._paths: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()

    def begin(self, at_s: float, path: str) -> Entry:
        """Note that a request has come."""
        entry = Entry(at_s, path)
        self.entries.append(entry)
        self.in_flight += 1
        self._counts.requests += 1
        self._counts.most_in_flight = max(self._counts.most_in_flight, self.in_flight)
        self._paths[path] += 1
        return entry

    def end(self, entry: Entry, now_s: float) -> None:
        """Note how it ended."""
        entry.took_s = now_s - entry.at_s
        self.in_flight -= 1
        if entry.at_s < self._since_s:
            return
        counts = self._counts
        counts.ended += 1
        counts.hung_up += entry.hung_up
        counts.limited += entry.status == 429 and entry.fault is None
        if entry.status == 200:
            counts.answered += 1
            counts.inputs += entry.inputs
            counts.tokens += entry.tokens
        self._statuses[str(entry.status or "none")] += 1
        if entry.fault:
            self._faults[entry.fault] += 1

    def counts(self, most_served_at_once: int) -> dict[str, Any]:
        """Return `Counts` as a dictionary."""
        self._counts.in_flight = self.in_flight
        self._counts.most_served_at_once = most_served_at_once
        self._counts.paths, self._counts.statuses, self._counts.faults = (
            dict(self._paths),
            dict(self._statuses),
            dict(self._faults),
        )
        return asdict(self._counts)
