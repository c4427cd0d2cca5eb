"""Write a job as a Celery task message (protocol 2) in the envelope that kombu keeps in Redis.

Producers need neither Celery nor an application for it, which keeps them thin; a test holds the envelope against
the one that Celery itself sends. Arguments are kept out of ``argsrepr``, so that Flower and logs never show them.
"""

import base64
import json
import os
import socket
from functools import cache
from typing import Any
from uuid import uuid4

HIDDEN = "<kept out of events and logs>"
_EMBED = '{"callbacks":null,"errbacks":null,"chain":null,"chord":null}'


def write(task: str, job_id: str, queue: str, step: int, kwargs: dict[str, Any]) -> str:
    """Return the message that makes a worker run ``task(**kwargs)`` as the job ``job_id``. Raises `ValueError`."""
    return write_json(task, job_id, queue, step, _json(kwargs))


def write_json(task: str, job_id: str, queue: str, step: int, kwargs: str) -> str:
    """Do the same for keyword arguments that are JSON already.

    The body is text inside of JSON, as kombu reads it too: base64, which kombu writes, is a third longer and takes
    longer to read than all else that is done with a large message. It comes last, so that the scripts find the job's
    id in front of it (`identify` in prelude.lua).
    """
    envelope = {
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": task,
            "id": job_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": job_id,
            "parent_id": None,
            "argsrepr": HIDDEN,
            "kwargsrepr": HIDDEN,
            "origin": _origin(os.getpid()),
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": job_id,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": step,
            "delivery_tag": str(uuid4()),
        },
        "body": f"[[],{kwargs},{_EMBED}]",
    }
    return _json(envelope)


def read(text: str) -> dict[str, Any]:
    """Return the envelope as it is, checked to have the parts that kombu reads. Raises `ValueError` naming the part."""
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"message: not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise ValueError(f"message: a JSON {type(payload).__name__}, not an object")
    headers = payload.setdefault("headers", {})
    properties = payload.get("properties")
    if not isinstance(headers, dict):
        raise ValueError("message.headers: not an object")
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_info"), dict):
        raise ValueError("message.properties: not an object with delivery_info")
    if not isinstance(headers.get("retries") or 0, int):
        raise ValueError(f"message.headers.retries: {headers['retries']!r} is not a whole number")
    if properties.get("body_encoding") not in (None, "", "utf-8", "base64"):
        raise ValueError(f"message.properties.body_encoding: {properties['body_encoding']!r} is not base64 or utf-8")
    if properties.get("body_encoding") == "base64":
        try:
            base64.b64decode(payload.get("body") or "", validate=False)
        except (ValueError, TypeError) as error:
            raise ValueError(f"message.body: not base64: {error}") from error
    return payload


def next_run(payload: dict[str, Any], spent: int) -> str:
    """Return a fetched message as it is to run again, with ``spent`` attempts more behind it and no eta."""
    headers = {**payload["headers"], "eta": None}
    headers["retries"] = int(headers.get("retries") or 0) + spent
    return json.dumps({**payload, "headers": headers}, separators=(",", ":"))


def first_run(text: str) -> str:
    """Return a message as it begins a new life: no attempts, no expiry. What cannot be read is left untouched."""
    try:
        payload = read(text)
        json.dumps(payload, ensure_ascii=False).encode()
    except ValueError:  # odd bytes inside of JSON are a fault too: written anew, they would come out as others
        return text
    headers = payload["headers"]
    if not headers.get("retries") and headers.get("expires") is None:
        return text
    return json.dumps({**payload, "headers": {**headers, "retries": 0, "expires": None}}, separators=(",", ":"))


def arguments(payload: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments that an envelope carries. Raises `ValueError` naming the part."""
    args, kwargs, _ = _triple(payload)
    return args, kwargs


def with_kwargs(payload: dict[str, Any], kwargs: dict[str, Any]) -> str:
    """Return the message that carries other keyword arguments and is the same else. Raises `ValueError`."""
    args, _, embed = _triple(payload)
    properties = {name: value for name, value in payload["properties"].items() if name != "body_encoding"}
    changed = {name: value for name, value in payload.items() if name != "body"}
    changed |= {"content-encoding": "utf-8", "properties": properties}
    return json.dumps({**changed, "body": _json([args, kwargs, embed])}, separators=(",", ":"))


def _triple(payload: dict[str, Any]) -> tuple[list[Any], dict[str, Any], Any]:
    if payload.get("content-type") != "application/json":
        raise ValueError(f"message.content-type: {payload.get('content-type')!r} is not application/json")
    body = payload.get("body") or ""
    try:
        coded = payload["properties"].get("body_encoding") == "base64"
        triple = json.loads(base64.b64decode(body) if coded else body)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"message.body: not JSON: {error}") from error
    match triple:
        case [list() as args, dict() as kwargs, embed]:
            return args, kwargs, embed
    raise ValueError("message.body: not a list of arguments, keyword arguments and options")


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text.encode()  # what UTF-8 cannot carry is refused here
    return text


@cache
def _origin(pid: int) -> str:
    return f"gen{pid}@{socket.gethostname()}"
