"""The texts that PostgreSQL can store."""

from __future__ import annotations

from db.errors import TextError


def check(**texts: str | None) -> None:
    """Refuse texts that PostgreSQL cannot store: U+0000 and lone surrogates.

    Raises TextError naming the first such field, the character and its position.
    """
    for field, text in texts.items():
        if text is None:
            continue
        reason = fault(text)
        if reason is not None:
            raise TextError(f"{field} {reason}: remove it")


def fault(text: str) -> str | None:
    """Say what is wrong with a text, or None when it can be stored."""
    position = text.find("\0")
    if position < 0:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            position = error.start
        else:
            return None
    return f"holds U+{ord(text[position]):04X} at position {position}, which PostgreSQL cannot store"
