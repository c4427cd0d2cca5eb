"""What commands print: tables that fit the terminal, and text from elsewhere that obeys nobody."""

import pytest
from rich.console import Console

from cli import output

COLUMNS = ("id", "calls", "statement")
ROWS = [("2f81", 1234, "SELECT id FROM documents WHERE key = $1"), ("90c4", 7, "SELECT '[/]'")]


def _printed(monkeypatch: pytest.MonkeyPatch, width: int, rows: list[tuple[str, int, str]] = ROWS) -> list[str]:
    console = Console(highlight=False, width=width, record=True)
    monkeypatch.setattr(output, "out", console)
    output.table("Slow statements", COLUMNS, rows)
    return console.export_text().splitlines()


def test_a_table_that_fits_has_borders_and_numbers_to_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = _printed(monkeypatch, 80)
    assert printed[0] == "Slow statements"
    assert any(line.startswith("│ 90c4 │     7 │ SELECT '[/]' ") for line in printed)


def test_a_table_too_wide_for_the_terminal_becomes_paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _printed(monkeypatch, 30) == [
        "Slow statements",
        "2f81",
        "  calls: 1,234",
        "  statement: SELECT id FROM documents WHERE key = $1",
        "90c4",
        "  calls: 7",
        "  statement: SELECT '[/]'",
    ]


def test_a_table_without_rows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (30, 80):
        assert _printed(monkeypatch, width, []) == ["Slow statements", "  none"]


def test_what_a_terminal_might_obey_is_shown_instead() -> None:
    assert output.one_line("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert output.lines("a\x1b[2Jb\nc") == "a\\x1b[2Jb\nc"
