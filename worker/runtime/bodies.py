"""Read the bodies of messages once, where their job runs.

Celery reads a body in the worker's main process, sends it on as it came, and reads it again in the child. With a
thousand rows in a job that is most of what the worker does.
"""

import json
from typing import Any

from celery.app.trace import loads_message
from kombu.message import Message
from kombu.serialization import prepare_accept_content

from worker.records.reason import Reason

JSON = "application/json"
#: What kombu writes into JSON for what JSON does not know; without it a body needs no look at each of its objects.
_TAG = "__type__"
#: Positional arguments, keyword arguments, options (callbacks and such): what Celery expects in a body.
Triple = tuple[list[Any], dict[str, Any], dict[str, Any]]
#: In the place of a body that is yet to be read. Celery finds three parts in it, and no "args".
UNREAD: Triple = ([], {}, {})


class Unreadable(ValueError):
    """A body that holds no task's arguments. ``reason`` is that of the dead letter."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def may_wait(message: Message) -> bool:
    """Tell whether Celery can do without a task message's body for now: if all that it looks at is in the headers."""
    return (
        message.content_type == JSON
        and isinstance(message.body, str | bytes)
        and isinstance(message.headers.get("id"), str)
    )


def read(body: Any, content_type: str, content_encoding: str, accepted: Any) -> Triple:
    """Return a body's three parts, read as Celery reads it. Raises `Unreadable`."""
    try:
        text = body.decode() if isinstance(body, bytes) else body  # kombu makes bytes of it when it reads a message
        if content_type == JSON and isinstance(text, str) and _TAG not in text:
            parts = json.loads(text)
        else:
            parts = loads_message(body, content_type, content_encoding, accept=prepare_accept_content(accepted))
    except Exception as error:
        raise Unreadable(Reason.UNDECODABLE, f"message.body: {error}") from error
    match parts:
        case [list() | tuple() as args, dict() as kwargs, dict() as embed]:
            return list(args), kwargs, embed
        case [list() | tuple() as args, dict() as kwargs, None]:
            return list(args), kwargs, {}
    raise Unreadable(Reason.MALFORMED, "message.body: not a list of arguments, keyword arguments and options")
