"""Penstock: the streaming server for language models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.client import AsyncClient as AsyncClient
    from penstock.client import Client as Client

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    """The clients, imported when asked for: the engine's process has no use for them."""
    if name in ("Client", "AsyncClient"):
        from penstock import client

        return getattr(client, name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
