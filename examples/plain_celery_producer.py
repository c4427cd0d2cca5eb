"""Send a job with plain Celery: this program imports nothing of Forebay and knows only two addresses.

Its job gets a record when a worker fetches it, and is then carried like any other.
"""

import os

from celery import Celery

app = Celery(broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])


def main() -> None:
    """Send one text to be embedded and wait for its result."""
    result = app.send_task(
        "tasks.embedding",
        kwargs={"text": "Sent by a program that knows only the broker.", "key": "examples/plain"},
        queue="embedding",
        priority=3,  # kombu's step for HIGH; 0 is NORMAL, 6 is LOW, 9 is BATCH
        expires=3600,  # not to be started later than in an hour
        headers={"sent_by": "examples"},  # of your own; stay in the message, also in that of a dead letter
    )
    print("job:", result.id)
    print("stored as:", result.get(timeout=60)["key"])


if __name__ == "__main__":
    main()
