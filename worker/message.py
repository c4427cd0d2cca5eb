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


def write(task: str, job_id: str, queue: str, step: int, kwargs: dict[str, Any]) -> str:
    """Return the message that makes a worker run ``task(**kwargs)`` as the job ``job_id``."""
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = json.dumps([[], kwargs, embed], ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    envelope = {
        "body": base64.b64encode(body).decode("ascii"),
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
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }
    return json.dumps(envelope, separators=(",", ":"))


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


@cache
def _origin(pid: int) -> str:
    return f"gen{pid}@{socket.gethostname()}"
