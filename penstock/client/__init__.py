"""The Python client of a Penstock server: `Client`, `AsyncClient`, their results and their errors.

The client imports `events`, `sse`, httpx and msgspec, and nothing of the server.
"""

from .answer import Completion, Options, QueuePlace, StreamStatus
from .async_client import AsyncClient, AsyncStream
from .client import Client, Stream
from .errors import (
    CutStreamError,
    FailedStreamError,
    IncompleteAnswerError,
    InvalidField,
    PenstockError,
    RefusedError,
    ServerUnreachableError,
    UnexpectedAnswerError,
)
from .resume import Backoff

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
    "StreamStatus",
    "UnexpectedAnswerError",
]
