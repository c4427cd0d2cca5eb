"""Where clients find each server: what the environment names, else what is started here."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dev import ports, postgres, valkey
from dev.provider import process as provider

FLOWER = "flower"
SERVERS = (valkey.NAME, postgres.NAME, provider.NAME)  # in the order of their start
PORT_VARIABLES = {
    valkey.NAME: "FOREBAY_VALKEY_PORT",
    postgres.NAME: "FOREBAY_POSTGRES_PORT",
    provider.NAME: "FOREBAY_PROVIDER_PORT",
    FLOWER: "FOREBAY_FLOWER_PORT",
}
# The variable that names a server elsewhere, for which nothing is then started here.
NAMED_BY = {valkey.NAME: "CELERY_BROKER_URL", postgres.NAME: "DATABASE_URL", provider.NAME: "OPENAI_BASE_URL"}
SERVICE_VARIABLES = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "DATABASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY")
LOCAL_KEY = "local"  # the local provider asks for none, but clients insist on one


def without_services(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables that name services elsewhere, so that all are started here."""
    own = {*SERVICE_VARIABLES, *PORT_VARIABLES.values(), "FOREBAY_HOME", "FLOWER_PORT", "CACHE_URL"}
    return {key: value for key, value in environ.items() if key not in own}


def of_services(environ: Mapping[str, str], chosen: Mapping[str, int]) -> dict[str, str]:
    """Return the service variables and FLOWER_PORT, given the ports of the servers that are started here."""
    named = {key: environ[key] for key in SERVICE_VARIABLES if environ.get(key)}
    own = {"FLOWER_PORT": str(chosen[FLOWER])}
    if valkey.NAME in chosen:
        own["CELERY_BROKER_URL"] = valkey.url(chosen[valkey.NAME], valkey.BROKER_DATABASE)
        own["CELERY_RESULT_BACKEND"] = valkey.url(chosen[valkey.NAME], valkey.RESULT_DATABASE)
    elif broker := named.get("CELERY_BROKER_URL"):
        own["CELERY_RESULT_BACKEND"] = broker  # their keys differ, and some servers have one database only
    if postgres.NAME in chosen:
        own["DATABASE_URL"] = postgres.url(chosen[postgres.NAME])
    if provider.NAME in chosen:
        own["OPENAI_BASE_URL"] = provider.url(chosen[provider.NAME])
        own["OPENAI_API_KEY"] = LOCAL_KEY
    return {**own, **named}


def without_secrets(addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses without a real key, which stays out of files."""
    return {key: value for key, value in addresses.items() if key != "OPENAI_API_KEY" or value == LOCAL_KEY}


def for_python(root: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what our own processes need to find this checkout's modules, its venv, and loopback."""
    python_path = (str(root), *environ.get("PYTHONPATH", "").split(os.pathsep))
    not_proxied = (*environ.get("NO_PROXY", environ.get("no_proxy", "")).split(","), ports.LOOPBACK, "localhost")
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(part for part in python_path if part)),
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), environ.get("PATH", os.defpath))),
        # A proxy that the environment names is not for servers on this machine; both spellings are in use.
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(dict.fromkeys(part for part in not_proxied if part))),
    }
