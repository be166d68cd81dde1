"""Penstock: a streaming server for language models, and its Python client."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.client import AsyncClient as AsyncClient
    from penstock.client import Client as Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    """Import a client at its first use, because the engine's process does not need it."""
    if name in ("Client", "AsyncClient"):
        from penstock import client

        return getattr(client, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
