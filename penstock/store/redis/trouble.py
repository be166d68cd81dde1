"""What is wrong with the store, in sentences that hold no secrets and no keys."""

import ssl

from redis.exceptions import RedisError

from penstock.errors import StartError
from penstock.store.protocol import StoreError
from penstock.store.redis.address import Address
from penstock.store.redis.line import ReplyError

# The first word of an error that the server replies → what it means, and the next step.
_REPLIES = {
    "OOM": ("is full", "Raise its maxmemory, or free memory in it."),
    "LOADING": ("is still loading its data", "Wait until it is ready."),
    "READONLY": ("is a read-only replica", "Use the address of the primary."),
    "MASTERDOWN": ("is a replica without its primary", "Use the address of the primary."),
    "MISCONF": ("cannot write to its disk", "Look into the store's own log."),
    "NOREPLICAS": ("has too few replicas to accept writes", "Start its replicas."),
    "BUSY": ("is busy with a script", "Find the program that runs slow scripts in it."),
    "NOAUTH": (
        "needs a password",
        "Set PENSTOCK_LOG_PASSWORD, and PENSTOCK_LOG_USERNAME if it has users.",
    ),
    "WRONGPASS": (
        "does not accept the user name and password",
        "Check PENSTOCK_LOG_USERNAME and PENSTOCK_LOG_PASSWORD.",
    ),
    "NOPERM": ("does not permit a command or key", "See the access rules in docs/stores.md."),
    "MOVED": ("is a cluster", "Use a server that is not a cluster."),
    "CLUSTERDOWN": ("is a cluster", "Use a server that is not a cluster."),
    "CROSSSLOT": ("is a cluster", "Use a server that is not a cluster."),
}


def sentence(error: Exception, address: Address) -> str:
    """Return what is wrong, as one sentence."""
    return _explain(error, address)[0]


def start_error(error: Exception, address: Address) -> StartError:
    """Return the error that keeps the server from starting."""
    return StartError(*_explain(error, address))


def store_error(error: Exception, address: Address) -> StoreError:
    """Return the error of one call."""
    return StoreError(sentence(error, address))


def _explain(error: Exception, address: Address) -> tuple[str, str]:
    where = f"The store at {address}"
    kind = str(error).partition(" ")[0]
    if isinstance(error, ReplyError | RedisError):
        if (known := _REPLIES.get(kind) or _of_redis_py(error)) is not None:
            return f"{where} {known[0]}.", known[1]
        if isinstance(error, ReplyError):
            return f"{where} refused a command.", "It must be Redis 7 or Valkey 8, or newer."
    if isinstance(error, ssl.SSLError):
        return (
            f"{where} has no certificate that this machine trusts, or does not speak TLS.",
            "Check the address; for an authority of your own, set SSL_CERT_FILE.",
        )
    if isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError":
        hint = " Check that it speaks TLS, or use redis://." if address.tls else ""
        return f"{where} does not answer.", f"Check that it runs and is not overloaded.{hint}"
    return f"{where} cannot be reached.", "Check that it runs there and accepts connections."


def _of_redis_py(error: Exception) -> tuple[str, str] | None:
    """Find the kind of an error from whose text redis-py has removed the first word."""
    kinds = {
        "OutOfMemoryError": "OOM",
        "BusyLoadingError": "LOADING",
        "ReadOnlyError": "READONLY",
        "MasterDownError": "MASTERDOWN",
        "AuthenticationError": "WRONGPASS",
        "NoPermissionError": "NOPERM",
        "MovedError": "MOVED",
    }
    if (kind := kinds.get(type(error).__name__)) is not None:
        return _REPLIES[kind]
    if type(error).__name__ == "ResponseError":
        return ("refused a command", "It must be Redis 7 or Valkey 8, or newer.")
    return None
