"""Read lengths of time as people write them: ``90s``, ``15m``, ``2h``, ``7d``."""

import re

import typer

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(text: str) -> float:
    """Return seconds. Raises `typer.BadParameter`, which ends a command with exit code 2."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])", text.strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is no length of time; give a number and s, m, h or d, such as 90s or 2h")
    return float(found.group(1)) * UNITS_S[found.group(2)]
