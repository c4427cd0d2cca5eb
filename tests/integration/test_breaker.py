"""Breakers in the broker's Redis, against a simple model of one; time passes by moving the record's moments."""

from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.limits.breaker import BreakerOpen, Breakers, Seen, Ticket, breakers
from worker.policy.queue import Breaker
from worker.records.broker import Broker

# So far apart that the time which the test itself takes decides nothing.
POLICY = Breaker(failures=3, within_s=1000, open_s=100, open_max_s=350)
PROBE_S = 500.0
NAME = "provider.example/v1 a-model"


def back(broker: Broker, seconds: float) -> None:
    """Let every moment of the breaker lie so much further back, as if the time had passed."""
    record = broker.keys.breaker(NAME)
    for name, value in broker.redis.hgetall(record).items():
        if name in (b"open_until", b"probe_until", b"failed"):
            moved = " ".join(f"{float(at) - seconds:.6f}" for at in value.split())
            broker.redis.hset(record, name, moved)


@dataclass
class Model:
    """What a breaker is to do, in words of its own clock."""

    now: float = 0
    failed: list[float] = field(default_factory=list)
    open_until: float | None = None
    trips: int = 0
    probe: Ticket | None = None
    probe_until: float = 0

    def lets_through(self) -> bool:
        if self.open_until is None:
            return True
        return self.now >= self.open_until and (self.probe is None or self.now >= self.probe_until)

    def asked(self, ticket: Ticket) -> None:
        assert bool(ticket.probe) == (self.open_until is not None)
        if ticket.probe:
            self.probe, self.probe_until = ticket, self.now + PROBE_S

    def told(self, ticket: Ticket, end: str) -> None:
        if self.open_until is not None:
            if ticket != self.probe:
                return
            self.probe = None
            if end == "answered":
                self.close()
            elif end == "failed":
                self.open()
        elif end == "answered" and not ticket.is_quiet:
            self.close()
        elif end == "failed":
            self.failed = [at for at in self.failed if self.now - at < POLICY.within_s] + [self.now]
            if len(self.failed) >= POLICY.failures:
                self.open()

    def open(self) -> None:
        self.trips += 1
        self.open_until = self.now + min(POLICY.open_max_s, POLICY.open_s * 2 ** (self.trips - 1))
        self.failed = []

    def close(self) -> None:
        self.failed, self.open_until, self.trips, self.probe = [], None, 0, None

    @property
    def state(self) -> str:
        if self.open_until is None:
            return "closed"
        return "open" if self.now < self.open_until else "half-open"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.just("")),
        st.tuples(st.sampled_from(["oldest", "newest"]), st.sampled_from(["answered", "failed", "failed", "unknown"])),
        st.tuples(st.just("pass"), st.sampled_from(["30", "130", "330", "630"])),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_any_history_is_the_model_s(broker: Broker, history: list[tuple[str, str]]) -> None:
    broker.redis.flushdb()
    model, ours = Model(), Breakers(broker, POLICY)
    under_way: list[Ticket] = []
    for step, what in history:
        if step == "pass":
            back(broker, float(what))
            model.now += float(what)
        elif step == "ask":
            lets_through = model.lets_through()
            if lets_through:
                ticket = ours.ask(NAME, PROBE_S)
                model.asked(ticket)
                under_way.append(ticket)
            else:
                with pytest.raises(BreakerOpen) as raised:
                    ours.ask(NAME, PROBE_S)
                assert 0 < raised.value.retry_after_s <= POLICY.open_max_s
        elif under_way:
            ticket = under_way.pop(0 if step == "oldest" else -1)
            ours.tell(ticket, what)  # type: ignore[arg-type]
            model.told(ticket, what)
        seen = breakers(broker)
        assert [each.state for each in seen] == ([model.state] if model.state != "closed" or model.failed else [])
        if seen:
            # failures that are too old are counted out with the next one
            assert seen[0].failures >= len([at for at in model.failed if model.now - at < POLICY.within_s])
            assert seen[0].trips == model.trips


def failing(broker: Broker, times: int = POLICY.failures) -> Breakers:
    ours = Breakers(broker, POLICY)
    for _ in range(times):
        ours.tell(ours.ask(NAME, PROBE_S), "failed")
    return ours


def test_an_open_breaker_says_for_how_long_and_is_seen(broker: Broker) -> None:
    ours = failing(broker)
    with pytest.raises(BreakerOpen) as raised:
        ours.ask(NAME, PROBE_S)
    assert 90 < raised.value.retry_after_s <= 100
    (seen,) = breakers(broker)
    assert (seen.name, seen.state, seen.failures, seen.trips) == (NAME, "open", 0, 1)
    assert 90 < seen.half_opens_in_s <= 100
    Breakers(broker, POLICY).ask("provider.example/v1 another-model", PROBE_S)


def test_one_probe_goes_at_a_time_and_one_that_is_never_told_is_given_up(broker: Broker) -> None:
    ours, others = failing(broker), Breakers(broker, POLICY)
    back(broker, 101)
    first = ours.ask(NAME, PROBE_S)
    with pytest.raises(BreakerOpen):
        others.ask(NAME, PROBE_S)
    back(broker, PROBE_S + 1)
    second = others.ask(NAME, PROBE_S)
    ours.tell(first, "answered")  # it was given up: its word does not count
    assert [each.state for each in breakers(broker)] == ["half-open"]
    others.tell(second, "answered")
    assert breakers(broker) == []


def test_an_answer_between_failures_starts_the_count_anew(broker: Broker) -> None:
    ours = failing(broker, POLICY.failures - 1)
    assert breakers(broker) == [Seen(NAME, "closed", 2, 0, 0.0)]
    ours.tell(ours.ask(NAME, PROBE_S), "answered")
    failing(broker, POLICY.failures - 1)
    ours.ask(NAME, PROBE_S)


def test_an_answer_while_nothing_failed_costs_no_command(broker: Broker) -> None:
    ours = Breakers(broker, POLICY)

    def scripts() -> int:
        return int(broker.redis.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])

    ticket = ours.ask(NAME, PROBE_S)
    before = scripts()
    ours.tell(ticket, "answered")
    assert scripts() == before
    failing(broker, 1)
    ticket = ours.ask(NAME, PROBE_S)
    before = scripts()
    ours.tell(ticket, "answered")
    assert scripts() == before + 1
    assert breakers(broker) == []


def test_calls_go_while_redis_is_away(caplog: pytest.LogCaptureFixture) -> None:
    away = Broker(redis.Redis(port=1, retry=None))
    ours = Breakers(away, POLICY)
    for _ in range(POLICY.failures + 1):
        ticket = ours.ask(NAME, PROBE_S)
        assert ticket == Ticket(NAME), "leave for one call, which is no probe"
        ours.tell(ticket, "failed")
    assert caplog.text.count("a call goes without asking the breaker") == POLICY.failures + 1
