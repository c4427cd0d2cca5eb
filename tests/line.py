"""A way to a server that a test can cut and mend, as a network does."""

import contextlib
import select
import socket
import threading
from urllib.parse import urlsplit


class Line:
    """Carries connections to the server of a URL. While it is cut, every connection ends at once."""

    def __init__(self, url: str) -> None:
        there = urlsplit(url)
        self._to = (there.hostname or "", there.port or 6379)
        self._is_cut = threading.Event()
        self._guard = threading.Lock()
        self._carried: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}{there.path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and those that are made until `mend`."""
        with self._guard:
            self._is_cut.set()
            for each in self._carried:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Carry connections again."""
        self._is_cut.clear()

    def close(self) -> None:
        """End it for good."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed with the test
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, socket.create_connection(self._to) as far, contextlib.suppress(OSError):
            with self._guard:
                if self._is_cut.is_set():
                    return
                self._carried |= {near, far}
            try:
                _pass_on(near, far)
            finally:
                with self._guard:
                    self._carried -= {near, far}


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    while True:
        for ready in select.select([near, far], [], [])[0]:
            read = ready.recv(1 << 20)
            if not read:
                return
            (far if ready is near else near).sendall(read)
