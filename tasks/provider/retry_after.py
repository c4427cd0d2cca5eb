"""Read from a provider's reply in how many seconds it wants to be asked again."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

#: A wait longer than a day is no wait that anybody means.
ABSURD_S = 86400.0

UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|µs|ns|d|h|m|s)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?")


def of(headers: Mapping[str, str], now_s: float | None = None) -> float | None:
    """Return the seconds that a reply's headers ask to wait, None when they name no sensible wait.

    ``headers`` finds names in lower case. ``retry-after-ms`` goes before ``Retry-After`` (seconds, or an HTTP date,
    RFC 9110 section 10.2.3), and that before OpenAI's ``x-ratelimit-reset-*`` of what is used up. ``now_s``: the time
    that a date is reckoned from, by default this machine's.
    """
    ms = _number(headers.get("retry-after-ms"))
    for wait_s in (None if ms is None else ms / 1000, _seconds_or_date(headers.get("retry-after"), now_s)):
        if _is_sensible(wait_s):
            return wait_s
    used_up = [
        wait_s
        for what in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{what}")) == 0
        and _is_sensible(wait_s := duration_s(headers.get(f"x-ratelimit-reset-{what}") or ""))
    ]
    return max((wait_s for wait_s in used_up if wait_s is not None), default=None)


def of_used_up(headers: Mapping[str, str], tokens: int) -> float | None:
    """Return in how many seconds the next call of so many tokens may go, None when nothing says that it may not now.

    ``x-ratelimit-reset-*`` says when all of a limit is back; it is taken to come back evenly.
    """
    waits_s = []
    for what, needed in (("requests", 1), ("tokens", tokens)):
        limit, remaining = (_number(headers.get(f"x-ratelimit-{name}-{what}")) for name in ("limit", "remaining"))
        reset_s = duration_s(headers.get(f"x-ratelimit-reset-{what}") or "")
        if limit and remaining is not None and remaining < needed <= limit and _is_sensible(reset_s):
            waits_s.append((needed - remaining) / (limit - remaining) * (reset_s or 0))
    return max(waits_s, default=None)


def duration_s(text: str) -> float | None:
    """Return the seconds that a duration such as ``6m0s``, ``120ms`` or ``1d2h`` spells, None for anything else."""
    text = text.strip().lower()
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return _number(text)
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def _seconds_or_date(text: str | None, now_s: float | None) -> float | None:
    if text is None:
        return None
    seconds = _number(text)
    if seconds is not None:
        return seconds
    try:
        return parsedate_to_datetime(text).timestamp() - (time.time() if now_s is None else now_s)
    except (ValueError, TypeError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    text = (text or "").strip()
    return float(text) if len(text) < 20 and text.isascii() and _NUMBER.fullmatch(text) else None


def _is_sensible(wait_s: float | None) -> bool:
    return wait_s is not None and math.isfinite(wait_s) and 0 <= wait_s <= ABSURD_S
