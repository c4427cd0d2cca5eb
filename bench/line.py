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

    def cells(self) -> tuple[str, str, str, str, str]:
        """Return it for people: what, measured, compared with, ratio, and the aim with whether it was met."""
        aim = ""
        if self.aim is not None:
            aim = f"at {'most' if self.is_cost else 'least'} {self.aim:g}: {'met' if self.is_met else 'MISSED'}"
        compared = f"{_figure(self.compared)} {self.unit}: {self.against}"
        return self.what, f"{_figure(self.measured)} {self.unit}", compared, f"{self.ratio:.3g}", aim

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 4), "is_met": self.is_met}


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
