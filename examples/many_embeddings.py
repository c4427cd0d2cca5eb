"""Embed many texts with one call of the API. Run it twice: the second run finds the jobs of the first."""

import calendar

from tasks import Embedding, enqueue

#: Text by document key.
TEXTS = {
    f"examples/{month:02}-{day:02}": f"{calendar.month_name[month]} {day} is day {day} of month {month}."
    for month in (1, 2, 3)
    for day in range(1, 29)
}


def main() -> None:
    """Enqueue every text, wait for all, say what came of them."""
    jobs = enqueue.many(
        [
            # A repeat with the same key returns the first job and enqueues nothing.
            (Embedding(text=text, key=key), enqueue.Options(priority="LOW", idempotency_key=key))
            for key, text in TEXTS.items()
        ]
    )
    print("first job:", jobs[0].id)
    results = [job.result(timeout=60) for job in jobs]  # the worker gathers them: up to 64 in one call of the model
    print(f"{len(results)} documents of {results[0]['dimensions']} numbers by {results[0]['model']}")


if __name__ == "__main__":
    main()
