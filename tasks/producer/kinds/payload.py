"""What all kinds of payloads share: their base, the types of their fields, and the check that refuses the rest."""

import json
import re
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from worker.errors import JobRefused

Payload = TypeVar("Payload", bound="JobPayload")

#: NUL, and the halves of surrogate pairs, which JSON can carry and UTF-8 cannot.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must hold more than white space")
    return text


def _storable(text: str) -> str:
    bad = UNSTORABLE.search(text)
    if bad:
        raise ValueError(f"must hold no U+{ord(bad[0]):04X}, as at position {bad.start()}: PostgreSQL stores none")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_not_blank), AfterValidator(_storable)]
Text = Annotated[str, AfterValidator(_not_blank), AfterValidator(_storable)]


class JobPayload(BaseModel):
    """The arguments of a task, as they travel. A kind names its task and its queue, which has the default priority."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")

    queue: ClassVar[str]
    task: ClassVar[str]

    def cost(self) -> int:
        """Return what the job is reckoned to take from its gate: LLM tokens, or rows."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return the arguments as JSON, those that were left out left out. Raises `ValueError`, `TypeError`."""
        text = self.__pydantic_serializer__.to_json(self, exclude_none=True).decode()
        if "NaN" in text or "Infinity" in text:  # no JSON, unless it stands within a text
            json.dumps(self.model_dump(mode="json", exclude_none=True), allow_nan=False)
        return text


def check(kind: type[Payload], /, **arguments: Any) -> Payload:
    """Return the payload of a job. Raises `JobRefused` naming the first field at fault, its value and the remedy."""
    try:
        return kind(**arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if where:
            raise JobRefused(where, first["input"], _remedy(first)) from error
        field, _, remedy = first["msg"].removeprefix("Value error, ").partition(": ")
        raise JobRefused(field, _value_of(field, arguments), remedy) from error


def _remedy(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "is not a field of this kind of job; leave it out"
    if fault["type"] == "missing":
        return "is required; give it"
    if fault["type"] == "string_too_short":
        return f"is too short; give at least {fault['ctx']['min_length']} character, or leave it out if it may be"
    if fault["type"] in ("literal_error", "enum"):
        return f"is not allowed; give {fault['ctx']['expected']}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _value_of(field: str, arguments: dict[str, Any]) -> Any:
    if field.startswith("rows["):
        return arguments["rows"][int(field[5:-1])]
    return arguments.get(field)
