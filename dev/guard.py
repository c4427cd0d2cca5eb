"""Become a command that ends when the process that started it ends.

Run as `python -I -S guard.py DEATH_SIGNAL PARENT_PID UID:GID|- COMMAND [ARGUMENT...]`. A process of its own does
this and not `preexec_fn`, because Python code between fork and exec may deadlock in a parent with threads. The
user is changed here, after Python has read this file, which the new user may be unable to read.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Change user, ask the kernel for a signal at the parent's death, then execute the command."""
    death_signal, parent_pid, user = int(arguments[0]), int(arguments[1]), arguments[2]
    command = arguments[3:]
    prctl = None
    if sys.platform == "linux":
        import ctypes  # before the change of user, who may be unable to read the library

        prctl = ctypes.CDLL(None).prctl
    if user != "-":
        uid, gid = (int(number) for number in user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if prctl is not None:
        # After setuid: a change of credentials clears the setting, execve of a plain binary keeps it.
        prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the call, so no signal will come
            os._exit(1)
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"cannot start {command[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
