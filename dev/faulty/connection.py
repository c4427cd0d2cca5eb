"""The faulty provider's side of a TCP connection: waiting while the client stays, answering, resetting."""

import asyncio
import socket
import struct

from starlette.types import Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dev.faulty.log import CLIENT_LEFT, Entry

JSON = "application/json"
EVENTS = "text/event-stream"


class Connection(H11Protocol):
    """uvicorn's connection, at which a request can wait until its client leaves, and which can be reset.

    A timer and a future for each wait: tasks would be too dear for a thousand streams.
    """

    _waiter: asyncio.Future[bool] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let requests find their connection."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake the request that waits."""
        super().connection_lost(exc)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    @property
    def is_open(self) -> bool:
        """Tell whether the client is still there."""
        return not self.transport.is_closing()

    async def stays(self, until: asyncio.Future[bool]) -> bool:
        """Wait for the future; return its value, False as soon as the client has left."""
        if not self.is_open and not until.done():
            until.set_result(False)
        self._waiter = until
        try:
            return await until
        finally:
            self._waiter = None

    async def stays_until(self, moment_s: float) -> bool:
        """Wait until the loop's clock shows a moment; return False as soon as the client has left."""
        if moment_s <= self.loop.time():
            return self.is_open
        until = self.loop.create_future()
        timer = self.loop.call_at(moment_s, _come, until)
        try:
            return await self.stays(until)
        finally:
            timer.cancel()

    async def leaves(self) -> None:
        """Wait until the client leaves."""
        await self.stays(self.loop.create_future())

    async def reset(self) -> None:
        """Close with a TCP reset; what is not yet sent is lost."""
        # RFC 9293: closing with unsent data discarded and RST, which is what a linger time of 0 asks for.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        lost = self._lost()
        self.transport.abort()
        await lost

    async def close(self) -> None:
        """Close once all is sent."""
        lost = self._lost()
        self.transport.close()
        await lost

    def _lost(self) -> asyncio.Future[bool]:
        lost = self._waiter = self.loop.create_future()
        return lost


def _come(until: asyncio.Future[bool]) -> None:
    if not until.done():
        until.set_result(True)


class Reply:
    """The way back to one client."""

    def __init__(self, connection: Connection, send: Send, entry: Entry) -> None:
        """Take the connection, ASGI's send, and the log's entry that is kept up to date."""
        self.connection = connection
        self.entry = entry
        self.headers: dict[str, str] = {}
        self._send = send

    async def start(self, status: int, kind: str, length: int | None = None) -> None:
        """Send the head; without a length the body comes in chunks."""
        headers = {**self.headers, "content-type": kind, "x-request-id": f"req_{id(self.entry):x}"}
        if length is not None:
            headers["content-length"] = str(length)
        self.entry.status = status
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def part(self, content: bytes, *, more: bool = True) -> None:
        """Send some of the body."""
        await self._send({"type": "http.response.body", "body": content, "more_body": more})

    async def whole(self, status: int, content: bytes, kind: str = JSON) -> None:
        """Send an answer in one piece."""
        await self.start(status, kind, len(content))
        await self.part(content, more=False)

    async def creep(self, content: bytes, pause_s: float) -> bool:
        """Send the rest of the body a byte at a time; return False when the client left before the last."""
        for place in range(len(content)):
            if place and not await self.connection.stays_until(self.connection.loop.time() + pause_s):
                return False
            await self.part(content[place : place + 1], more=place + 1 < len(content))
        return True

    async def creep_in(self, status: int, kind: str, content: bytes, pause_s: float) -> bool:
        """Send the head a byte at a time, past the HTTP server, then the body, and close; return as `creep` does."""
        own = {"content-type": kind, "content-length": str(len(content)), "connection": "close"}
        lines = [f"HTTP/1.1 {status} OK", *(f"{name}: {value}" for name, value in {**self.headers, **own}.items())]
        self.entry.status = status
        for place, byte in enumerate("\r\n".join([*lines, "", ""]).encode("latin-1")):
            if place and not await self.connection.stays_until(self.connection.loop.time() + pause_s):
                return False
            self.connection.transport.write(bytes([byte]))
        self.connection.transport.write(content)
        await self.connection.close()
        return True

    def left(self) -> None:
        """Note that the client has left."""
        self.entry.hung_up = True
        self.entry.status = self.entry.status or CLIENT_LEFT
