"""Tells every variable of the environment that the database's part reads, and its effective value."""

import os
from collections.abc import Mapping

from db import engine
from db.conversations import paging
from db.query_cache import kinds as query_kinds
from db.variables import Reading, Variables


def effective(environment: Mapping[str, str] = os.environ) -> list[Reading]:
    """Return what is read from the environment; an address is told without its password.

    Without DATABASE_URL there is no database to configure.

    Raises SettingError that names every faulty variable, its value and what is allowed.
    """
    variables = Variables(environment)
    if variables.text("DATABASE_URL"):
        engine.read(variables)
    paging.read(variables)
    query_kinds.read(variables)
    variables.check()
    return variables.readings
