"""Run commands of `./forebay` as a user does."""

import json
import subprocess
import sys
from typing import Any


class Cli:
    """Run commands against the test's servers."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.errors = ""

    def __call__(self, *arguments: str, code: int = 0, given: bytes = b"", **settings: str) -> str:
        """Run a command, hold it to its exit code and to showing no stack trace, and return what it printed."""
        ended = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            env={**self.environment, "COLUMNS": "200", **settings},
            input=given,
            capture_output=True,
            timeout=120,
            check=False,
        )
        said, self.errors = ended.stdout.decode(), ended.stderr.decode()
        assert ended.returncode == code, said + self.errors
        assert "Traceback" not in said + self.errors
        return said if code == 0 else said + self.errors

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))
