"""What is wrong with the store, in sentences that hold no secrets and no keys."""

import ssl

from redis.exceptions import RedisError

from penstock.errors import StartError
from penstock.store.protocol import StoreError
from penstock.store.redis.address import Address
from penstock.store.redis.line import HangupError, ReplyError

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
# Words in other errors that the server replies → the same.
_WORDS = {
    "ACL failure in script": _REPLIES["NOPERM"],
    "user executing the script": _REPLIES["NOPERM"],  # Redis 7.0
    "DB index": (
        "has no database with this number",
        "Name another one at the end of the address, or raise the store's `databases`.",
    ),
}
_REFUSED = ("refused a command", "It must be Redis 7 or Valkey 8, or newer.")


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
    if isinstance(error, ReplyError | RedisError) and (found := _of_reply(error)) is not None:
        return f"{where} {found[0]}.", found[1]
    if isinstance(error, HangupError):
        hint = "" if address.tls else " If the store speaks TLS, use rediss://."
        return (
            f"{where} ended the connection.",
            f"Check that it is Redis or Valkey, and has room (maxclients).{hint}",
        )
    if isinstance(error, ssl.SSLError):
        return (
            f"{where} has no certificate that this machine trusts, or does not speak TLS.",
            "Check the address; for an authority of your own, set SSL_CERT_FILE.",
        )
    if isinstance(error, TimeoutError) or type(error).__name__ == "TimeoutError":
        hint = " Check that it speaks TLS, or use redis://." if address.tls else ""
        return f"{where} does not answer.", f"Check that it runs and is not overloaded.{hint}"
    return f"{where} cannot be reached.", "Check that it runs there and accepts connections."


def _of_reply(error: Exception) -> tuple[str, str] | None:
    """Explain an error that the server replied; return None if it is of another kind."""
    text = str(error)
    if (known := _REPLIES.get(text.partition(" ")[0]) or _of_redis_py(error)) is not None:
        return known
    for words, known in _WORDS.items():
        if words in text:
            return known
    is_reply = isinstance(error, ReplyError) or type(error).__name__ == "ResponseError"
    return _REFUSED if is_reply else None


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
    return _REPLIES.get(kinds.get(type(error).__name__, ""))
