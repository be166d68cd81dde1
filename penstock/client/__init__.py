"""The Python client of a Penstock server: `Client`, `AsyncClient`, their results and their errors.

The client imports `penstock.events`, `penstock.sse`, httpx and msgspec, and nothing of the server.
"""

from penstock.client.answer import Completion, Options, QueuePlace
from penstock.client.async_client import AsyncClient, AsyncStream
from penstock.client.client import Client, Stream
from penstock.client.errors import (
    CutStreamError,
    FailedStreamError,
    IncompleteAnswerError,
    InvalidField,
    PenstockError,
    RefusedError,
    ServerUnreachableError,
    UnexpectedAnswerError,
)
from penstock.client.resume import Backoff

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
]
