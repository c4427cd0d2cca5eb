"""What equal statements have in common: their text without values, and a short mark made of it.

The words are found by sqlglot's tokenizer, so that quotes, dollar quotes and comments are those of PostgreSQL. Its
parser is not asked: it takes operators of extensions for others, and what it cannot parse has to be grouped too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import sqlglot
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

#: Statements longer than this are cut before they are looked at; nobody reads them to the end.
MOST_CHARACTERS = 20_000
UNREADABLE = "(a statement that cannot be read)"
_PARAMETER = "forebay_parameter"  # a word, so that the tokenizer finds one token
# As the driver writes parameters: %(name)s, %s, and %% for a per cent sign; and as the server and a normal form do.
_DRIVERS = re.compile(r"%\([^)]*\)s|%s|%%|\$\d+\b")
_VALUES = {
    TokenType.STRING,
    TokenType.NUMBER,
    TokenType.NATIONAL_STRING,
    TokenType.BYTE_STRING,
    TokenType.BIT_STRING,
    TokenType.HEX_STRING,
    TokenType.RAW_STRING,
    TokenType.UNICODE_STRING,
    TokenType.HEREDOC_STRING,
}
#: What may stand before a text to give it a type; with a parameter SQL wants the type behind.
_TYPES = {"interval", "timestamp", "timestamptz", "date", "time", "regclass", "regconfig"}
_READ = {"select", "insert", "update", "delete", "with", "values", "merge", "table"}


@dataclass(frozen=True)
class NormalForm:
    """A statement with $1, $2 ... for its values, lists of values cut to their first; 12 hexadecimal digits of it.

    ``has_plan``: EXPLAIN takes it, and it is one statement.
    """

    statement: str
    fingerprint: str
    has_plan: bool


@lru_cache(maxsize=1024)
def of(statement: str) -> NormalForm:
    """Return the normal form of a statement as it is given to the driver."""
    given = _DRIVERS.sub(lambda found: "%" if found[0] == "%%" else _PARAMETER, statement[:MOST_CHARACTERS])
    try:
        tokens = sqlglot.tokenize(given, read="postgres")
    except SqlglotError:
        tokens = []
    if not tokens:
        return NormalForm(UNREADABLE, _mark(UNREADABLE), has_plan=False)
    while len(tokens) > 1 and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    is_single = all(token.token_type is not TokenType.SEMICOLON for token in tokens)
    words = list(_numbered(_shortened(list(_without_values(given, tokens)))))
    text = "".join(words).strip()
    has_plan = tokens[0].text.lower() in _READ and is_single and len(statement) <= MOST_CHARACTERS
    return NormalForm(text, _mark(text), has_plan)


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _without_values(text: str, tokens: list[Token]) -> Iterator[str]:
    """Yield the words of a statement, a space before those that had one; "$" stands for each value."""
    end, before = 0, ["", "", ""]  # the words before the next
    in_type = 0
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        word = text[token.start : token.end + 1]
        gap = " " if end and token.start > end else ""
        end = token.end + 1
        if word == "(" and (before[-2] == "::" or before[-2].lower() == "as"):
            in_type = 1  # the length in vector(384) or numeric(10, 2) is a part of the type
        elif word == ")":
            in_type = 0
        if word == _PARAMETER or (token.token_type in _VALUES and not in_type):
            typed = before[-1].lower() if token.token_type is TokenType.STRING and before[-1].lower() in _TYPES else ""
            yield f"{gap}$" + (f"::{typed}" if typed else "")
        elif not (word.lower() in _TYPES and following is not None and following.token_type is TokenType.STRING):
            yield gap + word
        before = [*before[1:], word]


def _shortened(words: list[str]) -> Iterator[str]:
    """Yield the words with lists of values, and the rows behind VALUES, cut to the first."""
    bare = [word.strip() for word in words]
    at = 0
    while at < len(words):
        yield words[at]
        if bare[at].lower() == "in" and bare[at + 1 : at + 3] == ["(", "$"]:
            yield from words[at + 1 : at + 3]
            at += 3
            while bare[at : at + 2] == [",", "$"]:
                at += 2
            continue
        if bare[at].lower() == "values":
            end = _group_end(bare, at + 1)
            yield from words[at + 1 : end]
            at = end
            while bare[at : at + 2] == [",", "("]:
                at = _group_end(bare, at + 1)
            continue
        at += 1


def _group_end(bare: list[str], at: int) -> int:
    """Return the place behind the parenthesis that opens at a place."""
    depth = 0
    while at < len(bare):
        depth += (bare[at] == "(") - (bare[at] == ")")
        at += 1
        if not depth:
            break
    return at


def _numbered(words: Iterator[str]) -> Iterator[str]:
    number = 0
    for word in words:
        if word.lstrip().startswith("$") and word.strip() in {"$", *(f"$::{each}" for each in _TYPES)}:
            number += 1
            yield word.replace("$", f"${number}", 1)
        else:
            yield word
