"""The load itself: who asks when, closed loop or open.

In: a `Load`, the bodies, and a way to ask one. Out: every answer, as it is in the end. Not known
here: HTTP, figures. The clock is passed in, so a test may own it.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator

from penstock.bench.answer import CUT, NO_CONNECTION, TIMEOUT, UNFINISHED, Answer
from penstock.bench.http import Clock, NotHttpError, Server
from penstock.bench.plan import Load

Send = Callable[[bytes, Answer], Awaitable[None]]
"""Sends a body and gives the answer all that comes. Raises OSError."""


class Run:
    """One run of a load; `answers` has those that have ended, whatever way, in that order."""

    def __init__(self, send: Send, clock: Clock, timeout_s: float) -> None:
        self.answers: list[Answer] = []
        self.in_flight: set[Answer] = set()
        self.max_in_flight = 0
        self.began = self.ended = clock()
        self._send = send
        self._clock = clock
        self._timeout_s = timeout_s

    async def play(self, load: Load, bodies: Iterator[bytes], seed: int) -> None:
        """All of it. Cancelled, what is under way is given up as `UNFINISHED`."""
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
                # At least one turn of the loop, also when late: answers must go on being read.
                await asyncio.sleep(max(0.0, intended - self._clock()))
                while (early := intended - self._clock()) > 0:  # noqa: ASYNC110 - timers are of whole ms
                    await asyncio.sleep(early)
                requests.create_task(self._ask(body, intended))

    async def _ask(self, body: bytes, intended: float) -> None:
        answer = Answer(intended, self._clock())
        self.in_flight.add(answer)
        self.max_in_flight = max(self.max_in_flight, len(self.in_flight))
        try:
            await ask(self._send, body, answer, self._timeout_s)
        finally:
            self.in_flight.discard(answer)
            self.answers.append(answer)


async def ask(send: Send, body: bytes, answer: Answer, timeout_s: float) -> None:
    """Ask once; what goes wrong stands in the answer."""
    try:
        async with asyncio.timeout(timeout_s):
            await send(body, answer)
    except TimeoutError:
        answer.fail(TIMEOUT, f"Not over after {timeout_s:g} s (--timeout).")
    except asyncio.CancelledError:
        answer.fail(UNFINISHED)
        raise
    except OSError as error:
        has_begun = answer.status is not None
        answer.fail(CUT if has_begun else NO_CONNECTION, sentence_of(error))


def sender(server: Server, route: str) -> Send:
    """Sends bodies to a route of a server."""

    async def send(body: bytes, answer: Answer) -> None:
        await server.ask(server.post(route, body), answer)

    return send


def sentence_of(error: OSError) -> str:
    """What went wrong with a connection, for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, NotHttpError) or error.errno is None:
        return str(error)
    return error.strerror or type(error).__name__
