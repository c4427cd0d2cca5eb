"""How many batches run, wait and are asked for, also when one ends before it has begun."""

import threading
from typing import Any

from worker.runtime.gathering import Gatherer


def hand_over(gatherer: Gatherer, *requests: str) -> None:
    for request in requests:
        gatherer.add(request)
    gatherer.close()


def test_so_many_batches_run_and_the_others_wait_for_a_slot() -> None:
    sent: list[list[Any]] = []
    gatherer = Gatherer("a.task", slots=1, ahead=1, send=sent.append)
    assert gatherer.room == 2
    hand_over(gatherer, "a", "b")
    hand_over(gatherer, "c")
    hand_over(gatherer)
    assert (sent, gatherer.room) == ([["a", "b"]], 0)
    gatherer.ended()
    assert (sent, gatherer.room) == ([["a", "b"], ["c"]], 1)
    gatherer.ended()
    assert gatherer.room == 2


def test_a_batch_of_which_nothing_is_wanted_any_more_ends_while_it_is_sent() -> None:
    sent: list[list[Any]] = []

    def send(batch: list[Any]) -> None:
        sent.append(batch)
        if batch == ["revoked"]:
            gatherer.ended()

    gatherer = Gatherer("a.task", slots=1, ahead=2, send=send)

    def history() -> None:
        for name in ("first", "revoked", "last"):
            hand_over(gatherer, name)
        gatherer.ended()

    thread = threading.Thread(target=history, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for itself"
    assert sent == [["first"], ["revoked"], ["last"]]
    assert gatherer.room == 2
