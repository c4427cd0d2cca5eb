"""One line of a benchmark's table: what was measured, against what, and what it should be."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """``ratio`` is measured over compared; with an ``aim`` it has to be at least that, or at most with ``is_cost``."""

    part: str
    what: str
    measured: float
    compared: float
    unit: str
    against: str
    aim: float | None = None
    is_cost: bool = False

    @property
    def ratio(self) -> float:
        return self.measured / self.compared if self.compared else 0.0

    @property
    def is_met(self) -> bool | None:
        """Whether the aim was reached; None without one."""
        if self.aim is None:
            return None
        return self.ratio <= self.aim if self.is_cost else self.ratio >= self.aim

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 4), "is_met": self.is_met}
