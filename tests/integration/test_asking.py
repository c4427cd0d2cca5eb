"""One call of a provider, and what its model's breaker and its account's gate hear of it; all of them real."""

import pytest

from dev.faulty.process import FaultyProvider
from tasks.provider import endpoint, llm
from worker.limits import gates
from worker.limits.breaker import Breakers, breakers
from worker.limits.gates import Meter
from worker.policy.gate import Bucket, Gate
from worker.policy.policy import load as load_policy
from worker.policy.queue import Breaker, Fallback
from worker.records.broker import Broker

HELLO = [{"role": "user", "content": "hello"}]
FIRST, SECOND = "a-model", "a-second-model"
POLICY = Breaker(failures=3, within_s=1000, open_s=500, open_max_s=600)
FALLBACKS = [Fallback(model=SECOND)]


@pytest.fixture
def first(faulty: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the faulty provider be asked; give the name of its breaker."""
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    monkeypatch.setenv("OPENAI_CHAT_MODEL", FIRST)
    return endpoint.chosen("chat").name


def models(faulty: FaultyProvider) -> list[str]:
    return [each.model for each in faulty.log()]


@pytest.mark.parametrize("fault", ["invalid_input", "context_length"])
def test_a_refused_request_is_asked_of_no_other_model(first: str, faulty: FaultyProvider, fault: str) -> None:
    faulty.fault(fault)  # type: ignore[arg-type]
    with pytest.raises(llm.ProviderRejected):
        llm.chat(HELLO, timeout_s=60, fallbacks=FALLBACKS)
    assert models(faulty) == [FIRST]


@pytest.mark.parametrize("fault", ["unknown_model", "rate_limit", "unauthorized", "quota", "payment_required"])
def test_what_another_model_may_answer_is_asked_of_the_next_at_once(
    first: str, faulty: FaultyProvider, fault: str
) -> None:
    faulty.fault(fault, model=FIRST)  # type: ignore[arg-type]
    answer = llm.chat(HELLO, timeout_s=60, fallbacks=FALLBACKS)
    assert (answer.model, answer.is_fallback) == (SECOND, True)
    assert models(faulty) == [FIRST, SECOND]


def test_a_silent_model_leaves_half_of_the_time_to_the_next(first: str, faulty: FaultyProvider) -> None:
    faulty.fault("hang", model=FIRST)
    assert llm.chat(HELLO, timeout_s=6, fallbacks=FALLBACKS).model == SECOND
    assert [(each.model, each.hung_up) for each in faulty.log()] == [(FIRST, True), (SECOND, False)]


def test_what_a_moment_may_heal_is_tried_three_times_and_then_the_breaker_is_open(
    first: str, faulty: FaultyProvider, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.fault("server_error", model=FIRST)
    ours = Breakers(broker, POLICY)
    assert llm.chat(HELLO, timeout_s=60, fallbacks=FALLBACKS, breakers=ours).model == SECOND
    assert models(faulty) == [FIRST] * 3 + [SECOND]
    (seen,) = breakers(broker)
    assert (seen.name, seen.state) == (first, "open")
    assert caplog.text.count("Retrying") == 2
    caplog.clear()
    with pytest.raises(llm.BreakerOpen) as refused:
        llm.chat(HELLO, timeout_s=60, breakers=ours)
    assert 400 < (refused.value.retry_after_s or 0) <= POLICY.open_s
    assert len(faulty.log()) == 4, "the open breaker lets no call through"
    assert "Retrying" not in caplog.text, "nobody waits in a slot for a breaker"


@pytest.mark.parametrize("fault", ["invalid_input", "unknown_model", "rate_limit", "unauthorized"])
def test_a_refusal_is_an_answer_to_the_breaker(first: str, faulty: FaultyProvider, broker: Broker, fault: str) -> None:
    ours = Breakers(broker, POLICY)
    for _ in range(POLICY.failures - 1):
        ours.tell(ours.ask(first, 60), "failed")
    assert [each.failures for each in breakers(broker)] == [POLICY.failures - 1]
    faulty.fault(fault)  # type: ignore[arg-type]
    with pytest.raises(llm.ProviderError):
        llm.chat(HELLO, timeout_s=60, breakers=ours)
    assert breakers(broker) == [], "the provider is there, so its failures in a row are over"


def test_a_probe_that_gets_no_permit_leaves_the_way_to_another(
    first: str,
    faulty: FaultyProvider,
    broker: Broker,
    gated: Meter,
) -> None:
    faulty.clear()
    ours = Breakers(broker, POLICY)
    for _ in range(POLICY.failures):
        ours.tell(ours.ask(first, 60), "failed")
    record = broker.keys.breaker(first)
    broker.redis.hset(record, "open_until", f"{float(broker.redis.hget(record, 'open_until')) - 1000:.6f}")
    gated.busy(1000.0)
    with pytest.raises(llm.ProviderBusy):
        llm.chat(HELLO, timeout_s=60, breakers=ours, meter=gated)
    assert faulty.log() == []
    assert ours.ask(first, 60).probe, "the probe that never went is given back"


def test_a_gate_is_settled_by_what_became_of_each_call(
    first: str,
    faulty: FaultyProvider,
    broker: Broker,
    gated: Meter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(timeout_s: float = 60) -> llm.Completion:
        return llm.chat(HELLO, timeout_s=timeout_s, max_tokens=50, meter=gated)

    faulty.clear()
    spent = ask().total_tokens
    assert levels(broker) == pytest.approx((9, 1000 - spent), abs=0.1), "the provider's own count"
    faulty.fault("invalid_input", next=1)
    with pytest.raises(llm.ProviderRejected):
        ask()
    assert levels(broker) == pytest.approx((8, 1000 - spent), abs=0.1), "a refused call cost no tokens"
    faulty.fault("stream_without_finish", next=1)
    with pytest.raises(llm.ProviderAway):
        ask(1)  # less than the pause before a second try
    calls, cost = levels(broker)
    assert calls == pytest.approx(7, abs=0.1)
    assert cost < 1000 - spent - 50, "what an answer cut short has cost nobody knows"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(llm.ProviderAway):
        ask(1)
    assert levels(broker) == pytest.approx((7, cost), abs=0.1), "a call that reached nobody is put back whole"
    assert "shut_until" not in of_gate(broker)


@pytest.mark.parametrize("is_limited", [False, True])
def test_a_limit_that_the_provider_says_is_used_up_shuts_only_a_gate_without_limits(
    first: str,
    faulty: FaultyProvider,
    broker: Broker,
    gated: Meter,
    is_limited: bool,
) -> None:
    faulty.clear()
    faulty.set(limit_requests=1, limit_window_s=60)
    name = "g" if is_limited else "provider"
    meter = Meter(broker, load_policy().queue("chat").model_copy(update={"gate": name}), 0, None)
    assert llm.chat(HELLO, timeout_s=60, max_tokens=50, meter=meter).text
    assert broker.redis.hexists(broker.keys.gate(name), "shut_until") is not is_limited


# The gate of one account and the calls of another.


@pytest.fixture
def gated(broker: Broker, faulty: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Give the meter of a run behind a gate that holds 10 calls and 1000 tokens and hardly fills."""
    gate = Gate(requests=Bucket(rate=0.001, burst=10), tokens=Bucket(rate=0.001, burst=1000))
    policy = load_policy().model_copy(update={"gates": {"g": gate, "provider": Gate()}})
    monkeypatch.setattr(gates, "load_policy", lambda: policy)
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "the first key")
    monkeypatch.setenv("OPENAI_CHAT_MODEL", FIRST)
    monkeypatch.setenv("OTHER_URL", faulty.base_url)
    monkeypatch.setenv("OTHER_KEY", "another key")
    faulty.fault("unknown_model", model=FIRST)  # it is not asked again, and not charged
    return Meter(broker, load_policy().queue("chat").model_copy(update={"gate": "g"}), 0, None)


def of_gate(broker: Broker) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in broker.redis.hgetall(broker.keys.gate("g")).items()}


def levels(broker: Broker) -> tuple[float, float]:
    gate = of_gate(broker)
    return float(gate["calls"]), float(gate["cost"])


def ask(meter: Meter, **provider: str) -> llm.Completion:
    fallback = Fallback(model=SECOND, **provider)
    return llm.chat(HELLO, timeout_s=60, max_tokens=50, meter=meter, fallbacks=[fallback])


OTHER = {"base_url_env": "OTHER_URL", "api_key_env": "OTHER_KEY"}
#: The same address with another key, and another address with the same key: each is another account.
OTHERS = [OTHER, {"api_key_env": "OTHER_KEY"}, {"base_url_env": "OTHER_URL"}]


@pytest.mark.parametrize("provider", OTHERS)
def test_another_account_s_answer_takes_no_permit_and_settles_nothing(
    broker: Broker, faulty: FaultyProvider, gated: Meter, monkeypatch: pytest.MonkeyPatch, provider: dict[str, str]
) -> None:
    monkeypatch.setenv("OTHER_URL", other_address(faulty, provider))
    assert ask(gated, **provider).model == SECOND
    assert [each.status for each in faulty.log()] == [404, 200]
    assert levels(broker) == pytest.approx((9, 1000), abs=0.1), "the first account's call, refused, cost no tokens"


@pytest.mark.parametrize("provider", OTHERS)
def test_another_account_s_refusal_does_not_shut_the_gate(
    broker: Broker, faulty: FaultyProvider, gated: Meter, monkeypatch: pytest.MonkeyPatch, provider: dict[str, str]
) -> None:
    monkeypatch.setenv("OTHER_URL", other_address(faulty, provider))
    faulty.fault("rate_limit", model=SECOND, retry_after="30")
    with pytest.raises(llm.ProviderBusy):
        ask(gated, **provider)
    assert [each.status for each in faulty.log()] == [404, 429]
    assert "shut_until" not in of_gate(broker)
    assert levels(broker) == pytest.approx((9, 1000), abs=0.1)


def other_address(faulty: FaultyProvider, provider: dict[str, str]) -> str:
    """Name the same provider by another address, unless the key alone makes the difference."""
    return faulty.base_url if "api_key_env" in provider else faulty.base_url.replace("127.0.0.1", "localhost")


def test_a_fallback_on_the_same_account_goes_through_its_gate(
    broker: Broker, faulty: FaultyProvider, gated: Meter
) -> None:
    answer = ask(gated)
    assert levels(broker) == pytest.approx((8, 1000 - answer.total_tokens), abs=0.1)
    faulty.fault("rate_limit", model=SECOND, retry_after="30")
    with pytest.raises(llm.ProviderBusy):
        ask(gated)
    assert float(of_gate(broker)["shut_until"]) > broker.redis.time()[0]
