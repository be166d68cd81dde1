"""Runs a load: starts each request at its time, in a closed or an open loop.

In: a `Load`, the requests' bodies, and a function that sends a body. Out: every answer, finished or
failed. Not known here: HTTP, figures. The clock is an argument, so that a test can control it.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator

from penstock.bench.answer import CUT, NO_CONNECTION, TIMEOUT, UNFINISHED, MeasuredAnswer
from penstock.bench.http import Clock, HttpClient, NotHttpError
from penstock.bench.plan import Load

Send = Callable[[bytes, MeasuredAnswer], Awaitable[None]]
"""Sends a body and passes the response to the answer. Raises OSError if the connection fails."""


class Run:
    """A run of a load.

    `answers`: the answers that have ended, finished or failed, in the order in which they ended.
    `in_flight`: the answers that have not ended. `timeout_s`: seconds after which a request fails.
    """

    def __init__(self, send: Send, clock: Clock, timeout_s: float) -> None:
        self.answers: list[MeasuredAnswer] = []
        self.in_flight: set[MeasuredAnswer] = set()
        self.max_in_flight = 0
        self.began = self.ended = clock()
        self._send = send
        self._clock = clock
        self._timeout_s = timeout_s

    async def play(self, load: Load, bodies: Iterator[bytes], seed: int) -> None:
        """Send every request of the load and wait for the answers.

        If cancelled, it abandons the requests in flight as `UNFINISHED`. `seed` determines the
        random arrival times.
        """
        self.began = self._clock()
        try:
            if load.rate is None:
                await self._closed(load, bodies)
            else:
                await self._open(load, bodies, seed)
        finally:
            self.ended = self._clock()

    async def _closed(self, load: Load, bodies: Iterator[bytes]) -> None:
        until = float("inf") if load.duration_s is None else self.began + load.duration_s

        async def client() -> None:
            for body in bodies:
                now = self._clock()
                if now >= until:
                    return
                await self._ask(body, now)

        assert load.concurrency is not None
        async with asyncio.TaskGroup() as clients:
            for _ in range(load.concurrency):
                clients.create_task(client())

    async def _open(self, load: Load, bodies: Iterator[bytes], seed: int) -> None:
        until = float("inf") if load.duration_s is None else load.duration_s
        async with asyncio.TaskGroup() as requests:
            for body, due in zip(bodies, load.due_times(seed), strict=False):
                if due >= until:
                    return
                intended = self.began + due
                # Sleep even if late: one turn of the loop lets the answers be read.
                await asyncio.sleep(max(0.0, intended - self._clock()))
                while (early := intended - self._clock()) > 0:  # noqa: ASYNC110 - timers are of whole ms
                    await asyncio.sleep(early)
                requests.create_task(self._ask(body, intended))

    async def _ask(self, body: bytes, intended: float) -> None:
        answer = MeasuredAnswer(intended, self._clock())
        self.in_flight.add(answer)
        self.max_in_flight = max(self.max_in_flight, len(self.in_flight))
        try:
            await ask(self._send, body, answer, self._timeout_s)
        finally:
            self.in_flight.discard(answer)
            self.answers.append(answer)


async def ask(send: Send, body: bytes, answer: MeasuredAnswer, timeout_s: float) -> None:
    """Send one request and record a failure in its answer. Raises only CancelledError."""
    try:
        async with asyncio.timeout(timeout_s):
            await send(body, answer)
    except TimeoutError:
        answer.fail(TIMEOUT, f"The answer had not ended after {timeout_s:g} s (--timeout).")
    except asyncio.CancelledError:
        answer.fail(UNFINISHED)
        raise
    except OSError as error:
        has_begun = answer.status is not None
        answer.fail(CUT if has_begun else NO_CONNECTION, sentence_of(error))


def sender(http: HttpClient, route: str) -> Send:
    """Return a function that sends bodies to a route."""

    async def send(body: bytes, answer: MeasuredAnswer) -> None:
        await http.send(http.post(route, body), answer)

    return send


def sentence_of(error: OSError) -> str:
    """Return why a connection failed, as part of a sentence for the user."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, NotHttpError) or error.errno is None:
        return str(error)
    return error.strerror or type(error).__name__
