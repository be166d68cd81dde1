"""Penstock: a streaming server for language models, and its Python client."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.client import AsyncClient as AsyncClient
    from penstock.client import Client as Client
    from penstock.client import CutStreamError as CutStreamError
    from penstock.client import FailedStreamError as FailedStreamError
    from penstock.client import IncompleteAnswerError as IncompleteAnswerError
    from penstock.client import InvalidField as InvalidField
    from penstock.client import PenstockError as PenstockError
    from penstock.client import RefusedError as RefusedError
    from penstock.client import ServerUnreachableError as ServerUnreachableError
    from penstock.client import UnexpectedAnswerError as UnexpectedAnswerError

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "CutStreamError",
    "FailedStreamError",
    "IncompleteAnswerError",
    "InvalidField",
    "PenstockError",
    "RefusedError",
    "ServerUnreachableError",
    "UnexpectedAnswerError",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import the client at its first use, because the engine's process does not need it."""
    if name in __all__:
        from penstock import client

        return getattr(client, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
