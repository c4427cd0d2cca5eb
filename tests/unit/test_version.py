"""One version, in pyproject.toml: the command prints it, and the changelog ends with it."""

import re
import subprocess
import sys
from pathlib import Path

from cli import version

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_prints_it() -> None:
    ended = subprocess.run([sys.executable, "-m", "cli", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"forebay {version.current()}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version.current())


def test_the_newest_release_in_the_changelog_has_it() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", version.current()]
