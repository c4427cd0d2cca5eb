"""Read CSV as PostgreSQL's COPY does: what was quoted is never NULL."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from worker.errors import JobRefused

FIELD = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"|([^",]*+)')


def read(
    lines: Iterator[tuple[int, str]], name: str, columns: list[str] | None, null: str, most_bytes: int
) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """Return the columns, of the header unless they are given, and the rows, each with the number of its first line.

    An unquoted field equal to ``null`` is None. Blank lines are passed over. Raises `JobRefused` naming the line.
    """
    records = _records(lines, name, most_bytes)
    names = columns or _header(records, name)

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        for number, text in records:
            fields = _split(text, null, f"{name}:{number}")
            if len(fields) != len(names):
                raise JobRefused(
                    f"{name}:{number}",
                    text[:80],
                    f"has {len(fields)} fields for {len(names)} columns; "
                    + (_other_delimiter(fields) or 'quote a field that holds a comma: "a,b"'),
                )
            if fields == columns:
                raise JobRefused(f"{name}:{number}", text[:80], "names the columns; leave --columns out")
            yield number, fields

    return names, rows()


def _header(records: Iterator[tuple[int, str]], name: str) -> list[str]:
    for number, text in records:
        names = [field or "" for field in _split(text, "", f"{name}:{number}")]
        place = f"{name}:{number}"
        if "" in names:
            raise JobRefused(place, text[:80], f"has no name for column {names.index('') + 1}; name every column")
        for column in names:
            if names.count(column) > 1:
                raise JobRefused(place, column, "is the name of two columns; name each once")
        if told := _other_delimiter(names):
            raise JobRefused(place, text[:80], f"is one field; {told}")
        return names
    return []


def _other_delimiter(fields: Sequence[str | None]) -> str:
    """Return what to do when a line is one field because something else than a comma stands between its fields."""
    found = [each for each in ";\t|" if len(fields) == 1 and each in (fields[0] or "")]
    return f"separate fields by commas, not by {found[0]!r}" if found else ""


def _records(lines: Iterator[tuple[int, str]], name: str, most_bytes: int) -> Iterator[tuple[int, str]]:
    """Join the lines of quoted fields that hold line breaks."""
    for number, line in lines:
        text = line
        if line.count('"') % 2:
            parts, length = [line], len(line)
            for _, more in lines:
                parts.append(more)
                length += len(more)
                if more.count('"') % 2:
                    break
                if length > most_bytes:
                    raise JobRefused(
                        f"{name}:{number}", line[:80], f"opens a quote that is not closed in {most_bytes} bytes"
                    )
            else:
                raise JobRefused(f"{name}:{number}", line[:80], "opens a quote that is never closed")
            text = "".join(parts)
        text = text.removesuffix("\n").removesuffix("\r")
        if text:
            yield number, text


def _split(text: str, null: str, place: str) -> list[str | None]:
    if '"' not in text:
        return [None if field == null else field for field in text.split(",")]
    fields: list[str | None] = []
    at = 0
    while found := FIELD.match(text, at):
        quoted, plain = found.groups()
        fields.append(quoted.replace('""', '"') if quoted is not None else None if plain == null else plain)
        at = found.end()
        if at == len(text):
            return fields
        if text[at] != ",":
            break
        at += 1
    raise JobRefused(place, text[at : at + 40], 'has a quote within a field; quote the whole field and double it: ""')
