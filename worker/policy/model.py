"""What every part of queues.yaml is made of: strict numbers, and models that refuse unknown keys."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

# Strict, for pydantic would take true, which YAML also spells yes and on, for 1, and text for the number it spells.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Seconds = Annotated[Real, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Kept = Annotated[Real, Field(ge=1, le=366 * 86400, allow_inf_nan=False)]  # below 1, whole seconds are 0: for ever
Count = Annotated[Whole, Field(ge=1, le=10_000_000)]
Share = Annotated[Real, Field(ge=0, le=1, allow_inf_nan=False)]


class Model(BaseModel):
    """A part of queues.yaml: unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def off(value: Any) -> Any:
    return 0 if value is False or str(value).strip().lower() == "off" else value


def switch(value: Any) -> Any:
    """Return the yes or no that a variable spells: it has no other way to say one, the file has."""
    spelled = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    return spelled.get(str(value).strip().lower(), value)
