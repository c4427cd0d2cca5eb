"""The hash-pinned locks: write them from pyproject.toml with uv, and check offline that they are up to date."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.errors import StackError

ROOT = Path(__file__).resolve().parent.parent
_INPUTS = "# inputs sha256:"
_PYTHON = "3.11"  # the oldest that is supported; the lock holds for later ones too
_NEVER = "sys_platform == 'never'"  # how pyproject.toml's overrides leave a package out
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")


@dataclass(frozen=True)
class Lock:
    """A lock file, and whether it holds the optional parts: embedded servers, local models, checks."""

    file_name: str
    with_extras: bool


LOCKS = (Lock("requirements.lock", True), Lock("requirements-production.lock", False))


def write(root: Path = ROOT, *, upgrade: bool = False) -> list[Path]:
    """Write both locks and return their paths; pins that still fit are kept unless `upgrade`. Raises StackError."""
    uv = _uv()
    written = []
    for lock in LOCKS:
        target = root / lock.file_name
        with tempfile.TemporaryDirectory() as directory:
            draft = Path(directory) / lock.file_name
            if target.exists():
                shutil.copyfile(target, draft)  # uv prefers the pins that it finds in its output file
            compiling = [
                *(*uv, "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header"),
                *("--no-emit-index-url", "--no-annotate", "--python-version", _PYTHON, "--output-file", str(draft)),
                *(("--all-extras",) if lock.with_extras else ()),
                *(("--upgrade",) if upgrade else ()),
                "pyproject.toml",
            ]
            done = subprocess.run(compiling, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode:
                raise StackError(f"uv could not resolve {lock.file_name}:\n{done.stderr.strip()}")
            pins = "".join(f"{entry}\n" for entry in _split(draft.read_text("utf-8")) if _NEVER not in entry)
        target.write_text(f"{_INPUTS}{_inputs_hash(_project(root), lock)}\n{pins}", encoding="utf-8")
        written.append(target)
    return written


def check(root: Path = ROOT) -> list[str]:
    """Return what is wrong with the locks, without a network; an empty list means that they are up to date."""
    try:
        project = _project(root)
    except (OSError, tomllib.TOMLDecodeError) as error:
        return [f"pyproject.toml cannot be read: {error}"]
    return [f"{lock.file_name}: {fault}" for lock in LOCKS for fault in _faults(root, project, lock)]


def _faults(root: Path, project: dict[str, Any], lock: Lock) -> list[str]:
    try:
        text = (root / lock.file_name).read_text("utf-8")
    except OSError as error:
        return [f"cannot be read: {error.strerror}; run `./forebay lock`"]
    faults = []
    if text.split("\n", 1)[0] != _INPUTS + _inputs_hash(project, lock):
        faults.append("pyproject.toml's dependencies have changed since it was written; run `./forebay lock`")
    if "://" in text:
        faults.append("holds an address; where packages come from is the installing machine's setting")
    entries = _split(text)
    faults += [f"{entry.split()[0]} has no hash" for entry in entries if "--hash=sha256:" not in entry]
    faults += [f"not pinned to one version: {entry.split()[0]}" for entry in entries if not _PIN.match(entry)]
    pins = {canonicalize_name(pin[1]): pin[2] for entry in entries if (pin := _PIN.match(entry))}
    for wanted in map(Requirement, _wanted(project, lock)):
        pinned = pins.get(canonicalize_name(wanted.name))
        if pinned is None or not wanted.specifier.contains(pinned, prereleases=True):
            faults.append(f"pyproject.toml wants {wanted}, pinned is {pinned or 'nothing'}")
    return faults


def _split(text: str) -> list[str]:
    """Return one string for each requirement; its hashes stand on lines of their own, each continued by a backslash."""
    lines = "\n".join(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return re.split(r"(?<!\\)\n", lines)


def _wanted(project: dict[str, Any], lock: Lock) -> list[str]:
    extras = project["project"].get("optional-dependencies", {}) if lock.with_extras else {}
    return [*project["project"]["dependencies"], *(one for group in extras.values() for one in group)]


def _inputs_hash(project: dict[str, Any], lock: Lock) -> str:
    inputs = {
        "requires-python": project["project"].get("requires-python"),
        "dependencies": sorted(_wanted(project, lock)),
        "uv": project.get("tool", {}).get("uv", {}),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


def _uv() -> tuple[str, ...]:
    if found := shutil.which("uv"):
        return (found,)
    probe = subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True, check=False)
    if probe.returncode:
        raise StackError("writing the locks needs uv, which is not on PATH; install it with `pipx install uv`")
    return (sys.executable, "-m", "uv")


if __name__ == "__main__":
    write()
