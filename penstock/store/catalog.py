"""The stores of logs, by the value of the setting `log`."""

import importlib.util
from pathlib import Path

from penstock.errors import StartError
from penstock.store.protocol import LogStore

REDIS_SCHEMES = ("redis://", "rediss://")


def create_store(log: str, *, patience: float, username: str, password: str) -> LogStore | None:
    """Return the store that `log` names, or None for memory. Raises StartError.

    `patience` is how long the store may be out of reach before its logs are given up, in seconds.
    """
    if log == "memory":
        return None
    if log.startswith(REDIS_SCHEMES):
        if importlib.util.find_spec("redis") is None or importlib.util.find_spec("hiredis") is None:
            raise StartError(
                "Logs in Redis need the packages redis and hiredis.",
                "Install them: pip install 'penstock-server[redis]'",
            )
        from penstock.store.redis.store import RedisStore  # an extra, and slow to import

        return RedisStore(log, patience=patience, username=username, password=password)
    if "://" in log:
        raise StartError(
            "The setting 'log' names a store that Penstock does not know.",
            "Use memory, a folder, redis://host:port/db or rediss://host:port/db.",
        )
    from penstock.store.sqlite.store import SqliteStore

    return SqliteStore(Path(log), patience=patience)
