"""The Procfile's reader."""

from pathlib import Path

import pytest

from dev import procfile
from dev.errors import StackError

ROOT = Path(__file__).resolve().parents[2]


def test_names_and_words_come_in_order() -> None:
    entries = procfile.parse("# lanes\nworker-chat: ./forebay worker chat\n\nweb: serve --title 'two words' \"a b\"\n")

    assert [entry.name for entry in entries] == ["worker-chat", "web"]
    assert entries[0].argv == ("./forebay", "worker", "chat")
    assert entries[1].argv == ("serve", "--title", "two words", "a b")


def test_shell_characters_in_single_quotes_are_plain_text() -> None:
    assert procfile.parse("a: run '$x | y'")[0].argv == ("run", "$x | y")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("no colon here", "expected `name: command`"),
        ("name:", "expected `name: command`"),
        ("bad name: run", "expected `name: command`"),
        ("a: run && stop", "'&' is shell logic"),
        ("a: run > file", "'>' is shell logic"),
        ("a: serve --port $PORT", "'$' is shell logic"),
        ('a: serve "$PORT"', "'$' is shell logic"),
        ("a: run 'open", "no closing quotation"),
    ],
)
def test_a_fault_names_its_line(line: str, fault: str) -> None:
    with pytest.raises(StackError) as raised:
        procfile.parse(f"# first\nfine: run\n{line}\n", "Procfile")

    assert "Procfile, line 3: " in str(raised.value)
    assert fault in str(raised.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(StackError) as raised:
        procfile.parse("a: one\nnonsense\na: two\nb: x | y\n")

    assert [line.split(": ")[0] for line in str(raised.value).splitlines()] == [
        "Procfile, line 2",
        "Procfile, line 3",
        "Procfile, line 4",
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"cannot read .*Procfile"):
        procfile.read(tmp_path / "Procfile")


def test_our_own_procfile_runs_every_lane_and_flower() -> None:
    commands = {entry.name: entry.argv for entry in procfile.read(ROOT / "Procfile")}

    assert commands == {
        "worker-chat": ("./forebay", "worker", "chat"),
        "worker-embedding": ("./forebay", "worker", "embedding"),
        "worker-bulk": ("./forebay", "worker", "bulk_insert"),
        "flower": ("./forebay", "flower"),
    }
