"""Let the user edit a text in the editor of their choice."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from worker.errors import ForebayError


def open_with(text: str) -> str:
    """Return a text as $VISUAL or $EDITOR leaves it. It lies in a folder that nobody else can enter.

    Bytes that are no UTF-8 are surrogates (PEP 383) on both ways. Raises `ForebayError`.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="forebay-") as folder:
        path = Path(folder) / "letter.json"
        path.write_bytes(f"{text}\n".encode("utf-8", "surrogateescape"))
        try:
            ended = subprocess.run([*shlex.split(editor), str(path)], check=False)
        except (OSError, ValueError) as error:
            raise ForebayError(f"EDITOR: {editor!r} cannot be run ({error}); set it, or give --from") from error
        if ended.returncode:
            raise ForebayError(f"EDITOR: {editor!r} ended with {ended.returncode}; nothing is changed")
        return path.read_bytes().decode("utf-8", "surrogateescape")
