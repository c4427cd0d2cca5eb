"""The faulty provider's sliding window against the definition: what any so many seconds hold."""

from hypothesis import given
from hypothesis import strategies as st

from dev.faulty.limits import Window

# Quarters are exact in binary, so that the definition below and the code round nothing.
CALLS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), max_size=40)


@given(CALLS, st.integers(1, 12))
def test_a_window_lets_in_exactly_what_fits(calls: list[tuple[int, int]], limit: int) -> None:
    window, seconds, now_s = Window(limit, 2.0), 2.0, 0.0
    let_in: list[tuple[float, int]] = []

    def held(at_s: float) -> int:
        return sum(amount for taken_s, amount in let_in if at_s - taken_s < seconds)

    for quarters, amount in calls:
        now_s += quarters / 4
        wait_s = window.wait_s(now_s, amount)
        assert (wait_s == 0) == (held(now_s) + amount <= limit)
        if amount > limit:
            assert wait_s == float("inf")
        elif wait_s:
            assert held(now_s + wait_s) + amount <= limit < held(now_s + wait_s - 0.25) + amount
        else:
            window.take(now_s, amount)
            let_in.append((now_s, amount))
        assert window.total == held(now_s)
        assert held(now_s + window.empty_in_s(now_s)) == 0


def test_rounding_lets_nothing_in_too_early() -> None:
    window, taken_s = Window(1, 0.7), 37_000.0
    window.take(taken_s, 1)
    now_s = taken_s + 0.7
    assert now_s - taken_s < 0.7  # by the last bit
    assert window.wait_s(now_s, 1) > 0
