"""The faulty provider's limits: requests and tokens in a sliding window, counted exactly, and calls at once."""

import asyncio
import math
from collections import deque

from dev.faulty.settings import Settings, whole_ms
from dev.provider.requests import ApiError


class Window:
    """Amounts of the last seconds. Half open: what came `seconds` ago to the instant no longer counts."""

    def __init__(self, limit: int, seconds: float) -> None:
        """Take the most that any `seconds` may hold."""
        self.limit = limit
        self.seconds = seconds
        self.total = 0
        self._taken: deque[tuple[float, int]] = deque()

    def wait_s(self, now_s: float, amount: int) -> float:
        """Return in how many seconds the amount fits: 0 for now, infinity for never."""
        while self._taken and now_s - self._taken[0][0] >= self.seconds:
            self.total -= self._taken.popleft()[1]
        excess = self.total + amount - self.limit
        if excess <= 0:
            return 0.0
        for taken_s, taken in self._taken:
            excess -= taken
            if excess <= 0:
                # Rounding may make it nothing, which would let in what does not fit yet.
                return max(math.ulp(now_s), taken_s + self.seconds - now_s)
        return math.inf

    def take(self, now_s: float, amount: int) -> None:
        """Count an amount that fits."""
        self._taken.append((now_s, amount))
        self.total += amount

    def empty_in_s(self, now_s: float) -> float:
        """Return in how many seconds all of the limit is back."""
        return max(0.0, self._taken[-1][0] + self.seconds - now_s) if self._taken else 0.0


class Limits:
    """Both windows, and what OpenAI's headers say of them."""

    def __init__(self) -> None:
        """Start without limits."""
        self._windows: dict[str, Window] = {}

    def set(self, settings: Settings) -> None:
        """Take new limits; what a window has counted so far stays counted."""
        limits = {"requests": settings.limit_requests, "tokens": settings.limit_tokens}
        for name, limit in limits.items():
            if limit is None:
                self._windows.pop(name, None)
                continue
            window = self._windows.setdefault(name, Window(limit, settings.limit_window_s))
            window.limit, window.seconds = limit, settings.limit_window_s

    def take(self, now_s: float, tokens: int) -> None:
        """Count a request of so many tokens, or nothing at all; raises ApiError 429 when it is over a limit."""
        amounts = {"requests": 1, "tokens": tokens}
        waits_s = {name: window.wait_s(now_s, amounts[name]) for name, window in self._windows.items()}
        longest = max(waits_s, key=lambda name: waits_s[name], default=None)
        if longest is not None and waits_s[longest] > 0:
            raise _refusal(longest, self._windows[longest], amounts[longest], waits_s[longest])
        for name, window in self._windows.items():
            window.take(now_s, amounts[name])

    def headers(self, now_s: float) -> dict[str, str]:
        """Return the x-ratelimit headers; none without limits."""
        headers = {}
        for name, window in self._windows.items():
            window.wait_s(now_s, 0)
            headers[f"x-ratelimit-limit-{name}"] = str(window.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, window.limit - window.total))
            headers[f"x-ratelimit-reset-{name}"] = _duration(window.empty_in_s(now_s))
        return headers


def _refusal(name: str, window: Window, amount: int, wait_s: float) -> ApiError:
    used = f"limit {window.limit}, used {window.total}, requested {amount} {name} in {window.seconds:g} s"
    if math.isinf(wait_s):
        return rate_limited(f"the request is too large and can never be let in: {used}", name, None)
    return rate_limited(f"rate limit reached: {used}; try again in {wait_s:.3f} s", name, wait_s)


def rate_limited(message: str, what: str, wait_s: float | None) -> ApiError:
    """Return a 429 of OpenAI's that asks to wait so long, None for saying nothing of it."""
    headers = {} if wait_s is None else right_retry_after(wait_s)
    return ApiError(429, message, code="rate_limit_exceeded", kind=what, headers=headers)


def right_retry_after(wait_s: float) -> dict[str, str]:
    """Return the headers by which one waits long enough: whole seconds for all, milliseconds for who reads them."""
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(whole_ms(wait_s))}


def _duration(seconds: float) -> str:
    """Spell a duration as OpenAI does: 120ms, 1.5s, 6m0s."""
    ms = math.ceil(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest_ms / 1000:g}s"


class Slots:
    """Calls that are worked on at once; the others wait in the order of their arrival."""

    def __init__(self) -> None:
        """Start without a limit."""
        self.limit: int | None = None
        self.busy = 0
        self.most = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()

    def set(self, limit: int | None) -> None:
        """Take another limit, which holds for the calls to come."""
        self.limit = limit
        self._admit()

    def enter(self) -> "asyncio.Future[bool] | None":
        """Take a slot, or return the future that tells when one was given. Who gives up waiting sets it to False."""
        if self.limit is None or self.busy < self.limit:
            self._begin()
            return None
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        return turn

    def leave(self) -> None:
        """Give a slot back."""
        self.busy -= 1
        self._admit()

    def _begin(self) -> None:
        self.busy += 1
        self.most = max(self.most, self.busy)

    def _admit(self) -> None:
        while self._waiting and (self.limit is None or self.busy < self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._begin()
                turn.set_result(True)
