"""Name the five priorities and say where each waits in the broker."""
from enum import Enum
class Priority(Enum):
    CRITICAL = 2
    HIGH = 4
    NORMAL = 0
    LOW = 6
    BATCH = 8
    @property
    def step(self) -> int:
        return self.value
STEPS = (0, 2, 4, 6, 8)
FETCH_ORDER = (2, 4, 0, 6, 8)
def of_step(step: int) -> Priority:
    return Priority(step)
def parse(name: "str | Priority") -> Priority:
    return name if isinstance(name, Priority) else Priority[name.upper()]
