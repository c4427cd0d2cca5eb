"""Pages of long lists: their limits, and the cursors that lead from one to the next."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import ColumnElement, tuple_

from db.errors import PageError
from db.variables import Variables

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Item = TypeVar("Item")
#: Where a cursor leads from its place: before or after it, with what stands there (upto, since) or without.
Way = Literal["before", "upto", "after", "since"]


@dataclass(frozen=True)
class Limits:
    """How much a page holds when nobody says, how much at most by what it lists, and how far an offset goes."""

    default: int
    messages: int
    lists: int
    offset: int


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some of a list, in its order; `next` is what follows, `prev` what comes before.

    A cursor goes on from the place of this page's last or first item, however many come or go meanwhile. There is a
    `next_cursor` also when nothing follows yet: asked later, it gives what has come. `total` counts the whole list, if
    that was asked for.
    """

    items: list[Item]
    has_prev: bool
    has_next: bool
    prev_cursor: str | None
    next_cursor: str | None
    total: int | None = None


@dataclass(frozen=True)
class Place:
    """A place in a list that is ordered by time and id, and the way to go from it. ``list`` names the list."""

    list: str
    way: Way
    at: datetime
    id: int | str

    @property
    def is_forward(self) -> bool:
        """Whether it leads to later things."""
        return self.way in ("after", "since")

    def where(self, at: Any, id_: Any) -> ColumnElement[bool]:
        """Return the condition in time: before is earlier, whichever way the list is shown."""
        row, place = tuple_(at, id_), tuple_(self.at, self.id)
        match self.way:
            case "before":
                return row < place
            case "upto":
                return row <= place
            case "after":
                return row > place
            case "since":
                return row >= place

    def turned(self) -> Place:
        """Return the way to everything else."""
        other: dict[Way, Way] = {"before": "since", "upto": "after", "after": "upto", "since": "before"}
        return Place(self.list, other[self.way], self.at, self.id)

    def cursor(self) -> str:
        """Write it as text that is safe in a URL, and that nobody needs to understand."""
        parts = [self.list, self.way, (self.at - _EPOCH) // _MICROSECOND, self.id]
        return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode().rstrip("=")


def read(variables: Variables) -> Limits:
    """Read the limits; what is wrong is among the variables' faults."""
    return Limits(
        default=variables.whole("PAGINATION_DEFAULT_LIMIT", 50, 1),
        messages=variables.whole("PAGINATION_MESSAGES_LIMIT", 1000, 1),
        lists=variables.whole("PAGINATION_LIST_LIMIT", 500, 1),
        offset=variables.whole("PAGINATION_OFFSET_LIMIT", 100_000, 0),
    )


@cache
def limits() -> Limits:
    """Return this process's limits. Raises SettingError that names every faulty variable."""
    variables = Variables(os.environ)
    found = read(variables)
    variables.check()
    return found


def page_of(
    rows: Sequence[Item],
    limit: int,
    place: Place | None,
    others: bool,
    place_of: Callable[[Item, Way], Place],
    total: int | None = None,
    newest_first: bool = False,
) -> Page[Item]:
    """Make a page of what was read from a place on (None: from the newest back), in that order and one more than limit.

    `others` says whether there is something on the other side of the place; `place_of` gives an item's place.
    """
    is_forward = place is not None and place.is_forward
    items = list(rows[:limit]) if is_forward else list(rows[:limit])[::-1]
    has_more = len(rows) > limit
    has_older, has_newer = (others, has_more) if is_forward else (has_more, others)
    older: Place | None = None
    newer: Place | None = None
    if items:
        older, newer = place_of(items[0], "before"), place_of(items[-1], "after")
    elif place is not None:
        older, newer = (place.turned(), place) if is_forward else (place, place.turned())
    back, on = (None if to is None else to.cursor() for to in (older, newer))
    if newest_first:
        return Page(items[::-1], has_newer, has_older, on, back, total)
    return Page(items, has_older, has_newer, back, on, total)


def read_cursor(cursor: str, name: str, id_type: type[int | str]) -> Place:
    """Read a cursor of the list `name`, whose ids are of `id_type`. Raises PageError for anything else."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        of, way, at, id_ = json.loads(base64.urlsafe_b64decode(padded))
        if of != name or way not in ("before", "upto", "after", "since"):
            raise ValueError(of, way)
        if type(at) is not int or type(id_) is not id_type or (isinstance(id_, int) and abs(id_) >= 2**63):
            raise ValueError(at, id_)
        if isinstance(id_, str) and ("\0" in id_ or id_.encode("utf-8", "surrogatepass") != id_.encode()):
            raise ValueError(id_)
        return Place(name, way, _EPOCH + at * _MICROSECOND, id_)
    except (ValueError, TypeError, OverflowError, RecursionError):
        shown = repr(cursor if len(str(cursor)) <= 60 else f"{str(cursor)[:60]}...")
        raise PageError(
            f"cursor={shown} is none of this list: take next_cursor or prev_cursor of a page, or leave it out"
        ) from None


def checked(limit: int | None, most: int, offset: int | None = None) -> int:
    """Return how much a page holds: the limit, or without one the default.

    Raises PageError naming field, value and remedy for a page that is too large or begins too far away.
    """
    if limit is None:
        limit = min(limits().default, most)
    if not _is_within(limit, 1, most):
        raise PageError(f"limit={limit!r}: a whole number from 1 to {most}; get more with further pages")
    if offset is not None and not _is_within(offset, 0, limits().offset):
        raise PageError(f"offset={offset!r}: a whole number from 0 to {limits().offset}; go further with a cursor")
    return limit


def check_one(**ways: object) -> None:
    """Refuse several ways to say where a page begins. Raises PageError naming them."""
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise PageError(f"{' and '.join(given)} were given: give one of {', '.join(ways)}")


def _is_within(number: object, least: int, most: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number <= most
