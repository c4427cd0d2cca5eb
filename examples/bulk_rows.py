"""Load the rows of a generator, in jobs of 1,000 rows. A repeat changes the same rows and adds none."""

import unicodedata
from collections.abc import Iterator
from typing import Any

from tasks import enqueue

FIRST, LAST = 0x1F300, 0x1FAFF


def rows() -> Iterator[dict[str, Any]]:
    """Give each named pictograph; enqueue reads them as it sends, so there may be more than fit into memory."""
    for codepoint in range(FIRST, LAST + 1):
        name = unicodedata.name(chr(codepoint), "")
        if name:
            yield {"codepoint": codepoint, "name": name}


def main() -> None:
    """Upsert the rows and wait for all of their jobs."""
    load = enqueue.bulk_upsert(
        "unicode_characters", rows(), key=["codepoint"], on_progress=lambda sent: print("sent:", sent)
    )
    print("jobs:", len(load.jobs))
    result = load.result(timeout=60)
    print("rows:", result["rows"], "of these updated:", result.get("updated", 0))


if __name__ == "__main__":
    main()
