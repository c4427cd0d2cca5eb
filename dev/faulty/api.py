"""OpenAI's HTTP protocol with limits and faults to order, in front of no model at all."""

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from starlette.types import Receive, Scope, Send

from dev.faulty import answers as provider_answers
from dev.faulty import control as faulty_control
from dev.faulty import faults as provider_faults
from dev.faulty.answers import Chat, Embeddings
from dev.faulty.connection import EVENTS, JSON, Reply
from dev.faulty.faults import Active
from dev.faulty.settings import CHAT, EMBEDDINGS, Settings
from dev.faulty.state import State
from dev.provider import requests as openai_requests
from dev.provider.requests import ApiError

_READERS: dict[str, Callable[[dict[str, Any], Settings], Chat | Embeddings]] = {
    CHAT: provider_answers.read_chat,
    EMBEDDINGS: provider_answers.read_embeddings,
}
_JOB_HEADERS = (b"idempotency-key", b"x-job-id")


class Provider:
    """The two paths that are asked all the time, outside of any framework, and the way to the others."""

    def __init__(self, state: State) -> None:
        """Take how to behave."""
        self.state = state
        self.control = faulty_control.application(state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] not in _READERS or scope["method"] != "POST":
            await self.control(scope, receive, send)
            return
        content = await _body(receive)
        now_s = time.monotonic()
        entry = self.state.record.begin(now_s, scope["path"])
        entry.job = _job(scope["headers"])
        reply = Reply(scope["state"]["connection"], send, entry)
        try:
            await self._answer(reply, content, now_s)
        except ApiError as error:
            reply.headers = {**self.state.limits.headers(now_s), **error.headers}
            await reply.whole(error.status, json.dumps(error.body).encode())
        finally:
            self.state.record.end(entry, time.monotonic())

    async def _answer(self, reply: Reply, content: bytes | None, now_s: float) -> None:
        if content is None:
            reply.left()
            return
        entry = reply.entry
        asked = _READERS[entry.path](openai_requests.parsed(content), self.state.settings)
        entry.model, entry.stream = asked.model, asked.stream
        entry.inputs, entry.tokens, entry.counted = len(asked.texts), asked.usage["total_tokens"], asked.counted
        if self.state.settings.log_texts:
            entry.texts = asked.texts
        active = self.state.faults.find(entry.path, asked, now_s)
        if active is None or not active.is_instead:
            self.state.limits.take(now_s, entry.counted)
        reply.headers = self.state.limits.headers(now_s)
        if active is not None:
            active.applied += 1
            entry.fault = active.kind
            if active.is_instead:
                await _say_instead(reply, active, asked, now_s)
                return
        await self._work(reply, asked, active)

    async def _work(self, reply: Reply, asked: Chat | Embeddings, active: Active | None) -> None:
        """Wait for a slot, hold it while the call takes its time, and answer."""
        turn = self.state.slots.enter()
        if turn is not None and not await reply.connection.stays(turn):
            reply.left()
            return
        try:
            if active is not None and active.kind in ("slow_headers", "slow_body"):
                is_heard = await _creep(reply, asked, self.state.settings, active)
            elif isinstance(asked, Chat) and asked.stream:
                is_heard = await _stream(reply, asked, self.state.settings)
            else:
                is_heard = await _tell(reply, asked, self.state.settings)
            if not is_heard:
                reply.left()
        finally:
            self.state.slots.leave()


def _job(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    found = {name: value.decode("latin-1") for name, value in headers if name in _JOB_HEADERS}
    return next((found[name] for name in _JOB_HEADERS if name in found), None)


async def _body(receive: Receive) -> bytes | None:
    """Return the request's body, None when the client left before its end."""
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(content)


async def _say_instead(reply: Reply, active: Active, asked: Chat | Embeddings, now_s: float) -> None:
    if error := provider_faults.refusal(active, asked, now_s):
        raise error
    match active.kind:
        case "hang":
            await reply.connection.leaves()
            reply.left()
        case "reset":
            await reply.connection.reset()
        case "html":
            await reply.whole(200, provider_faults.HTML, "text/html")
        case "malformed_json":
            await reply.whole(200, provider_faults.BROKEN_JSON)
        case "empty":
            await reply.whole(200, b"")
        case _:
            raise AssertionError(active.kind)


async def _tell(reply: Reply, asked: Chat | Embeddings, settings: Settings) -> bool:
    """Answer in one piece; return False when the client left before."""
    start_s = reply.connection.loop.time()
    fault = reply.entry.fault
    if isinstance(asked, Chat):
        content, took_s = provider_answers.chat_body(asked), settings.chat_s
    else:
        content = provider_answers.embeddings_body(asked, fault)
        took_s = settings.embedding_s + settings.embedding_per_input_s * len(asked.texts)
    if not await reply.connection.stays_until(start_s + took_s):
        return False
    if fault == "reset_midway":
        await reply.start(200, JSON, len(content))
        await reply.part(content[: len(content) // 2])
        await reply.connection.reset()
    else:
        await reply.whole(200, content)
    return True


async def _creep(reply: Reply, asked: Chat | Embeddings, settings: Settings, active: Active) -> bool:
    """Answer rightly, byte by byte and not at the speed that is set; return False when the client left before."""
    kind, pause_s = JSON, active.fault.pause_s
    if isinstance(asked, Embeddings):
        content = provider_answers.embeddings_body(asked, None)
    elif asked.stream:
        kind, chunks = EVENTS, provider_answers.stream_chunks(asked, settings.chunks)
        content = b"".join([*chunks, provider_answers.stream_end(asked), provider_answers.DONE])
    else:
        content = provider_answers.chat_body(asked)
    if active.kind == "slow_headers":
        return await reply.creep_in(200, kind, content, pause_s)
    await reply.start(200, kind, None if kind == EVENTS else len(content))
    return await reply.creep(content, pause_s)


async def _stream(reply: Reply, chat: Chat, settings: Settings) -> bool:
    """Answer in events; return False when the client left before the last."""
    connection, fault = reply.connection, reply.entry.fault
    start_s = connection.loop.time()
    chunks = provider_answers.stream_chunks(chat, settings.chunks)
    first_s = settings.chat_s / len(chunks) if settings.first_token_s is None else settings.first_token_s
    step_s = (settings.chat_s - first_s) / max(1, len(chunks) - 1)
    if fault not in (None, "stream_without_done"):
        chunks = chunks[: max(1, len(chunks) // 2)]
    for index, chunk in enumerate(chunks):
        if not await connection.stays_until(start_s + first_s + index * step_s):
            return False
        if index == 0:
            await reply.start(200, EVENTS)
        await reply.part(chunk)
    match fault:
        case "stream_stall":
            await connection.leaves()
            return False
        case "reset_midway":
            await connection.reset()
        case "stream_without_finish":
            await reply.part(b"", more=False)
        case "stream_error":
            await reply.part(provider_answers.stream_error(), more=False)
        case _:
            if not await connection.stays_until(start_s + settings.chat_s):
                return False
            end = provider_answers.stream_end(chat)
            await reply.part(end if fault else end + provider_answers.DONE, more=False)
    return True
