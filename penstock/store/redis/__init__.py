"""The store in Redis or Valkey: `--log redis://HOST:PORT/DB`.

Each log is a Redis stream. `store.py` is the store as `store.protocol` describes it. `owning.py`
appends to this replica's logs through one pipelined connection (`line.py`), `reading.py` reads the
logs of others, and `survey.py` finds replicas and orphans. `scripts.py` holds what must be one step
at the server, `layout.py` the names of the keys.
"""

from penstock.errors import StartError

try:
    from penstock.store.redis.store import RedisStore
except ModuleNotFoundError as missing:
    name = (missing.name or "").partition(".")[0]
    raise StartError(
        f"The log in Redis needs the package {name!r}, which is not installed.",
        "Install it: pip install '.[redis]'",
    ) from None

__all__ = ["RedisStore"]
