"""Requests that come before an engine knows its model: they wait in the queue, unread.

An engine that asks other servers knows its model when the first of them has answered. Before that,
nobody can check what a request asks, so no response can begin. Until then a request is a stream in
the queue that no engine can start: it holds only the request's body. So everything that holds for
waiting streams holds for it: the limits of the queue and of its key, its deadline, the memory
guard, the metrics, a client that leaves, a key that ends. Nothing of it is stored. When the model
is known, it leaves the queue, and the request opens its own streams.

In: bodies, as text. Out: the event that says that a body can be read, or why the wait ended. Not
known here: HTTP, what is in a body, which engine it is.
"""

import asyncio
from collections.abc import Callable

from penstock.errors import Problem
from penstock.request import Request
from penstock.stream.admission import UNREAD
from penstock.stream.quotas import Owner
from penstock.stream.record import SavedForm, StreamRecord
from penstock.stream.registry import Streams, new_stream_id
from penstock.stream.stream import Stream

LOADING = "The model is still loading. Try again in a moment."


class Unread:
    """The requests that wait for the model of `streams`, each for up to `patience` seconds.

    With a `patience` of 0, the engine itself loads its model, and no request waits for it.
    """

    def __init__(self, streams: Streams, patience: float = 0.0) -> None:
        self.awaits_model = patience > 0
        """True if a request that comes now must wait."""
        self._streams = streams
        self._patience = patience
        self._known = asyncio.Event()
        self._refusal: Callable[[], Problem] | None = None
        self._waiting: set[Stream] = set()

    def model_is_known(self) -> None:
        """Let the requests go on, in the order in which they came."""
        self.awaits_model = False
        self._known.set()

    def refuse(self, refusal: Callable[[], Problem]) -> None:
        """End the wait of all requests with the problem that `refusal` makes: no model comes."""
        self._refusal = refusal
        for stream in list(self._waiting):
            stream.refuse(refusal())

    def open(self, owner: Owner, body: str, timeout: float | None) -> Stream:
        """Put a request into the queue, and return its stream there; `leave` it in any case.

        The client allows `timeout` seconds. Raises Problem if there is no room.
        """
        if self._refusal is not None:
            raise self._refusal()
        request = Request(new_stream_id(), 0, model=UNREAD)
        form = SavedForm(options={"body": body})
        self._streams.admission.bounds[UNREAD] = 0
        try:
            stream = self._streams.open(StreamRecord(request, owner, timeout=timeout, form=form))
        except Problem:
            self._tidy()
            raise
        self._waiting.add(stream)
        return stream

    def leave(self, stream: Stream) -> None:
        """Take a request out of the queue, just before it opens its own streams or is refused."""
        self._waiting.remove(stream)
        if not stream.is_over:
            stream.is_over = True  # it ends no more, whoever leaves
            self._streams.let_go(stream)
        self._tidy()

    def _tidy(self) -> None:
        if not self._waiting:
            del self._streams.admission.bounds[UNREAD]

    async def until_known(self, stream: Stream) -> None:
        """Wait until the model is known, or until the stream of a request has ended.

        After `patience` seconds, it ends with the problem of an engine that loads.
        """
        waits = [asyncio.ensure_future(each) for each in (stream.end(), self._known.wait())]
        try:
            await asyncio.wait(waits, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self._known.is_set():
            stream.give_up("engine_loading", LOADING)  # unless it has ended
