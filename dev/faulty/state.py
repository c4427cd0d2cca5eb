"""All that a faulty provider is at a moment: its settings, faults, limits, slots and record."""

import time

from dev.faulty.faults import Faults
from dev.faulty.limits import Limits, Slots
from dev.faulty.log import Record
from dev.faulty.settings import Order


class State:
    """Changed by orders between requests; one event loop owns it."""

    def __init__(self, order: Order) -> None:
        """Start as ordered."""
        self.first = order
        self.settings = order.settings
        self.faults = Faults()
        self.limits = Limits()
        self.slots = Slots()
        self.record = Record()
        self.follow(order)

    def follow(self, order: Order) -> None:
        """Behave as ordered from now on."""
        self.settings = order.settings
        self.limits.set(self.settings)
        self.slots.set(self.settings.concurrent)
        now_s = time.monotonic()
        if order.faults is not None:
            self.faults.clear()
            self.faults.add(order.faults, now_s)
        self.faults.add(order.add_faults, now_s)

    def start_anew(self) -> None:
        """Behave as at the start, and forget what was counted and logged."""
        self.faults.clear()
        self.limits = Limits()
        self.forget()
        self.follow(self.first)

    def forget(self) -> None:
        """Empty the log and the counts."""
        self.record.reset(time.monotonic())
        self.slots.most = self.slots.busy
