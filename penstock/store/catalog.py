"""The stores of logs, by the value of the setting `log`.

Importing this module imports no store: a store is imported only where it is used.
"""

import pkgutil
from pathlib import Path

from penstock.errors import StartError
from penstock.store.protocol import LogStore

REDIS_SCHEMES = ("redis://", "rediss://")


def create_store(
    log: str, *, patience: float, sync: bool, username: str, password: str
) -> LogStore | None:
    """Return the store that `log` names, or None for memory. Raises StartError.

    `patience` is how long the store may be out of reach before its logs are given up, in seconds.
    With `sync`, each write to a folder waits for the disk.
    """
    store: LogStore
    if log == "memory":
        return None
    if log.startswith(REDIS_SCHEMES):
        make = _resolve("penstock.store.redis:RedisStore")
        store = make(log, patience=patience, username=username, password=password)
        return store
    if not log or "://" in log:
        raise StartError(
            "The setting 'log' names no store that Penstock knows.",
            "Use memory, a folder, redis://host:port/db or rediss://host:port/db.",
        )
    store = _resolve("penstock.store.sqlite.store:SqliteStore")(
        Path(log), patience=patience, synchronous="FULL" if sync else "NORMAL"
    )
    return store


def _resolve(target: str) -> type:
    found: type = pkgutil.resolve_name(target)
    return found
