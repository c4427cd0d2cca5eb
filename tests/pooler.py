"""Shares few connections to PostgreSQL among many clients, a transaction at a time, as PgBouncer does."""

from __future__ import annotations

import queue
import selectors
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

_PROTOCOL = 196608  # 3.0
_SSL, _GSS = 80877103, 80877104
#: What PgBouncer takes of a client's start, and forwards; it refuses all else.
_STARTUP = {"user", "database", "client_encoding", "datestyle", "timezone", "standard_conforming_strings"}
_STARTUP |= {"application_name"}


class Pooler:
    """A pooler in transaction mode on a port of its own. ``clients``: how many have connected.

    Each transaction takes the connection that has been idle for longest, so that two of one client seldom share one.
    """

    def __init__(self, server: tuple[str, int], user: str, database: str, connections: int) -> None:
        self._server, self._login = server, {"user": user, "database": database}
        self._free: queue.Queue[socket.socket] = queue.Queue()
        self._greeting = b""
        self.clients = 0
        for _ in range(connections):
            self._free.put(self._connect())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End; whoever is connected finds out."""
        self._listener.close()
        while not self._free.empty():
            self._free.get().close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.clients += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _connect(self) -> socket.socket:
        server = socket.create_connection(self._server)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        given = b"".join(part.encode() + b"\0" for pair in self._login.items() for part in pair) + b"\0"
        server.sendall(struct.pack("!ii", len(given) + 8, _PROTOCOL) + given)
        said = b""
        while not said.endswith(b"Z\0\0\0\5I"):
            said += b"".join(_message(server))
        self._greeting = said
        return server

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(ConnectionError):
            refused = [each for each in self._startup(client) if each not in _STARTUP]
            if refused:
                text = f"SFATAL\0C08P01\0Munsupported startup parameter: {refused[0]}\0\0".encode()
                client.sendall(b"E" + struct.pack("!i", len(text) + 4) + text)
                return
            client.sendall(self._greeting)
            while (first := _message(client))[0] != b"X":
                self._transaction(client, b"".join(first))

    def _startup(self, client: socket.socket) -> list[str]:
        while True:
            length, code = struct.unpack("!ii", _exactly(client, 8))
            given = _exactly(client, length - 8)
            if code == _PROTOCOL:
                return [each.decode() for each in given.rstrip(b"\0").split(b"\0")[::2]]
            if code not in (_SSL, _GSS):
                raise ConnectionError(f"no start of a connection: {code}")
            client.sendall(b"N")

    def _transaction(self, client: socket.socket, first: bytes) -> None:
        """Relay one transaction; a server that is left within one is not for others."""
        server = self._free.get()
        try:
            server.sendall(first)
            with selectors.DefaultSelector() as ready:
                ready.register(client, selectors.EVENT_READ, server)
                ready.register(server, selectors.EVENT_READ, client)
                while True:
                    for key, _ in ready.select():
                        source, target = key.fileobj, key.data
                        assert isinstance(source, socket.socket)
                        kind, length, body = _message(source)
                        target.sendall(kind + length + body)
                        if source is server and (kind, body) == (b"Z", b"I"):
                            self._free.put(server)
                            return
        except ConnectionError:
            server.close()
            self._free.put(self._connect())
            raise


@contextmanager
def opened(server: tuple[str, int], user: str, database: str, connections: int) -> Iterator[Pooler]:
    """Give a pooler that ends with the block."""
    with ExitStack() as end:
        pooler = Pooler(server, user, database, connections)
        end.callback(pooler.close)
        yield pooler


def _message(source: socket.socket) -> tuple[bytes, bytes, bytes]:
    kind, length = _exactly(source, 1), _exactly(source, 4)
    return kind, length, _exactly(source, int.from_bytes(length) - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    read = bytearray()
    while len(read) < count:
        if not (more := source.recv(count - len(read))):
            raise ConnectionError("the other side has closed")
        read += more
    return bytes(read)
