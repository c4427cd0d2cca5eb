"""The provider's faults of `./forebay chaos`: what it answers instead of an answer, for a moment or a few requests."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from cli.chaos.load import Order
from cli.chaos.scene import Scene
from cli.chaos.verdict import Accepted
from dev.faulty.settings import ABSURD_RETRY_AFTER, RIGHT, Kind
from tasks import Chat, Embedding, enqueue
from tasks.producer.enqueue import Options

REQUESTS = 4
REFUSED = "what the provider refuses"


def rate_limited(scene: Scene) -> None:
    """Answer 429 for a while, with a Retry-After that is right, absent or absurd."""
    with _met(scene, "rate_limit"):
        scene.provider.fault("rate_limit", for_s=1, retry_after=random.choice((RIGHT, None, *ABSURD_RETRY_AFTER)))


def failing(scene: Scene) -> None:
    with _met(scene, "server_error"):
        scene.provider.fault("server_error", for_s=1, status=random.choice((500, 502, 503, 529)))


def hanging(scene: Scene) -> None:
    """Say nothing, until the caller gives up."""
    _some(scene, "hang")


def resetting(scene: Scene) -> None:
    """Reset connections, before an answer and within one."""
    _some(scene, "reset", "reset_midway")


def cutting(scene: Scene) -> None:
    """End streams half way, in every manner."""
    _some(scene, "stream_without_finish", "stream_stall", "stream_error")


def miscounting(scene: Scene) -> None:
    """Give too few vectors, too many, one that is too short, one that is no number, and all in another order."""
    _some(scene, "vectors_missing", "vectors_extra", "vectors_short", "vectors_nan", "vectors_shuffled", each=1)


def garbling(scene: Scene) -> None:
    _some(scene, "html", "malformed_json", "empty")


def refusing(scene: Scene) -> None:
    """Refuse some requests for what they say; in a batch only the one at fault may die of it."""
    if not scene.strokes:
        scene.provider.fault("invalid_input", containing=REFUSED)  # for good
    embedding = Accepted(scene.load.new_id("refused"), "embedding", rows=0, ends=("dead",), reasons=("failed",))
    chat = Accepted(scene.load.new_id("refused"), "question", ends=("dead",), reasons=("failed",))
    text = f"{REFUSED}, {chat.id}"
    scene.load.order(
        Order(embedding, lambda: enqueue.many([Embedding(text=text)], options=Options(job_id=embedding.id))),
        Order(chat, lambda: enqueue.many([Chat(message=text, conversation=chat.id)], options=Options(job_id=chat.id))),
    )


def _some(scene: Scene, *kinds: Kind, each: int = REQUESTS) -> None:
    """Let so many requests meet each fault."""
    with _met(scene, *kinds):
        for kind in kinds:
            scene.provider.fault(kind, next=each)


@contextlib.contextmanager
def _met(scene: Scene, *kinds: Kind) -> Iterator[None]:
    """Switch faults on, and wait until each has struck. Raises `ForebayError` when one does not."""
    before = scene.provider.counts().faults
    yield

    def struck() -> bool:
        counted = scene.provider.counts().faults
        return all(counted.get(kind, 0) > before.get(kind, 0) for kind in kinds)

    scene.until(struck, f"requests meet {', '.join(kinds)}")
