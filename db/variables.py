"""Reads settings from environment variables, and tells of all that are faulty at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from db.errors import SettingError

#: What PostgreSQL takes of whole numbers, and of seconds, which it is sent as milliseconds.
_MOST = 2**31 - 1
_MOST_S = _MOST // 1000
_SWITCH = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
Value = TypeVar("Value", bound=str | float | bool)
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Reading:
    """A variable that was read, and its effective value: what was given, or the default."""

    name: str
    value: str | float | bool
    is_given: bool


class Variables:
    """The variables of one environment; one that is missing or empty has its default.

    ``readings`` gathers what was read, ``faults`` what is wrong: each variable's name, its value and what is allowed.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.readings: list[Reading] = []
        self.faults: list[str] = []

    def text(self, name: str) -> str:
        return self._environment.get(name, "").strip()

    def whole(self, name: str, default: int, least: int) -> int:
        allowed = f"a whole number from {least} to {_MOST}"
        return self._read(name, default, lambda given: _within(int(given), least, _MOST), allowed)

    def seconds(self, name: str, default: float, least: float, most: float = _MOST_S) -> float:
        allowed = f"a number of seconds from {least:g} to {most:.0f}"
        return self._read(name, default, lambda given: _within(float(given), least, most), allowed)

    def switch(self, name: str, default: bool = True) -> bool:
        return self._read(name, default, lambda given: _SWITCH[given.lower()], "true or false")

    def check(self) -> None:
        """Raise SettingError when anything was wrong."""
        if self.faults:
            raise SettingError("; ".join(self.faults))

    def _read(self, name: str, default: Value, parse: Callable[[str], Value], allowed: str) -> Value:
        given = self.text(name)
        value = default
        if given:
            try:
                value = parse(given)
            except (ValueError, KeyError):
                self.faults.append(f"{name}={given!r}: {allowed}")
        self.readings.append(Reading(name, value, bool(given)))
        return value


def _within(number: Number, least: float, most: float) -> Number:
    if not least <= number <= most:  # NaN is not
        raise ValueError(number)
    return number
