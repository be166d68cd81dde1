"""Penstock: a streaming server for language models, and its Python client.

The package `penstock_client` (clients/python) has these same files, without the server. So the
files that both have import each other by relative names.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import AsyncClient as AsyncClient
    from .client import AsyncStream as AsyncStream
    from .client import Backoff as Backoff
    from .client import Client as Client
    from .client import Completion as Completion
    from .client import CutStreamError as CutStreamError
    from .client import FailedStreamError as FailedStreamError
    from .client import IncompleteAnswerError as IncompleteAnswerError
    from .client import InvalidField as InvalidField
    from .client import Options as Options
    from .client import PenstockError as PenstockError
    from .client import QueuePlace as QueuePlace
    from .client import RefusedError as RefusedError
    from .client import ServerUnreachableError as ServerUnreachableError
    from .client import Stream as Stream
    from .client import UnexpectedAnswerError as UnexpectedAnswerError

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Backoff",
    "Client",
    "Completion",
    "CutStreamError",
    "FailedStreamError",
    "IncompleteAnswerError",
    "InvalidField",
    "Options",
    "PenstockError",
    "QueuePlace",
    "RefusedError",
    "ServerUnreachableError",
    "Stream",
    "UnexpectedAnswerError",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import the client at its first use, because the engine's process does not need it."""
    if name in __all__:
        from . import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
