"""One answer, by one upstream after the other.

In: a request, its prompt, and the pool of upstreams. Out: calls of its `Account`. Each upstream
goes on where the one before it failed. Not known here: what upstreams are asked, and how they are
looked at.
"""

import asyncio
import logging
import math
from collections.abc import Callable

from penstock.engine.remote.account import Account
from penstock.engine.remote.answers import Reader
from penstock.engine.remote.asking import Ask, ask_with_ids, ask_with_text, path_of
from penstock.engine.remote.binding import Bound, Recognise, recogniser_of_bound
from penstock.engine.remote.bonds import is_demanding, refusal_of
from penstock.engine.remote.control import without_control_texts
from penstock.engine.remote.failures import (
    GarbageError,
    GivenUpError,
    MissingError,
    RefusedError,
    UpstreamError,
)
from penstock.engine.remote.http import Exchange
from penstock.engine.remote.models import Model
from penstock.engine.remote.pool import Pool, Upstream
from penstock.engine.remote.probing import failure_of
from penstock.engine.remote.profile import Profile
from penstock.engine.remote.prompts import generated_ids_of
from penstock.engine.remote.routing import key_of
from penstock.request import Request

log = logging.getLogger(__name__)

MAX_DEATHS_IN_A_ROW = 2
MAX_DEATHS = 20
MAX_ERROR_BYTES = 64 * 1024
MAX_HEARTBEAT_BYTES = 16 * 1024 * 1024
MAX_BYTES_PER_TOKEN = 16 * 1024
# Only so many of the answer's tokens count as load: nobody knows how long it becomes.
EXPECTED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4
# After the end of an answer, an upstream has so much time to send the usage.
LAST_WORDS_S = 5.0
NOT_BACK = "No upstream came back in time. Send the request again later."
NO_ROUTE = (
    "The server that runs the model answers no requests of this kind. Send messages instead of a"
    " prompt, or a prompt instead of messages."
)
UNBOUND = (
    "The server that runs the model did not keep to the schema, the grammar or the required call."
    " Simplify it."
)
CANNOT_CONTINUE = (
    "The server that ran the model stopped, and no other can continue this answer from its middle."
    " Send the request again."
)


class Answering:
    """The answer of `model` to `request`.

    An upstream has failed after `silence` seconds without a byte. The answer is given up after
    `patience` seconds in which no upstream worked on it.
    """

    def __init__(
        self,
        pool: Pool,
        model: Model,
        request: Request,
        prompt_ids: tuple[int, ...],
        account: Account,
        bound: Bound,
        *,
        silence: float,
        patience: float,
    ) -> None:
        self._pool = pool
        self._model = model
        self._request = request
        self._prompt_ids = prompt_ids
        self._account = account
        self._bound = bound
        self._silence = silence
        self._patience = patience
        self._give_up_at = math.inf
        """When the answer is given up unless an upstream works on it, on the loop's clock."""
        self._has_ids = model.level == "ids"
        self._key = key_of(request)

    async def run(self) -> None:
        """Answer to the end. Raises GivenUpError and RefusedError."""
        recognise = await recogniser_of_bound(self._bound)
        account = self._account
        num_deaths = num_in_a_row = 0
        failed: Upstream | None = None
        self._be_patient()
        while account.ending is None and self._room > 0:
            before = account.num_tokens
            num_tokens = self._size_of_load()
            upstream = await self._take(num_tokens, failed)
            outcome = "cancelled"
            try:
                await self._continue_at(upstream)
                outcome = "answered"
                self._check(upstream, recognise)
            except RefusedError:
                outcome = "refused"
                raise
            except MissingError as error:
                outcome = "refused"
                await self._leave_out_route(upstream, error)
            except UpstreamError as error:
                outcome = "failed"
                upstream.fail(error)
                failed = upstream
                if error.began:
                    self._be_patient()
                    num_deaths += 1
                    num_in_a_row = num_in_a_row + 1 if account.num_tokens == before else 0
                if num_in_a_row >= MAX_DEATHS_IN_A_ROW or num_deaths >= MAX_DEATHS:
                    raise _blamed(num_deaths) from None
            finally:
                upstream.counts[outcome] += 1
                self._pool.give_back(upstream, num_tokens, self)
        if account.ending is None:
            account.end("length")
        account.finish(counts_exactly=self._has_ids and not self._needs_chat)

    def _be_patient(self) -> None:
        """Start the time of `patience` again, because an upstream has worked on the answer."""
        self._give_up_at = asyncio.get_running_loop().time() + self._patience

    async def _leave_out_route(self, upstream: Upstream, error: MissingError) -> None:
        """Send no more requests to a route that an upstream does not have.

        The upstream has failed only if its model is gone. Otherwise it still gets other requests: a
        server that answers only chats is healthy, although clients send prompts.
        """
        profile = upstream.profile
        if not await self._pool.is_unchanged(upstream):
            upstream.fail(error)
            return
        assert profile is not None
        log.warning("requests of this kind go elsewhere than to %s: %s", upstream.name, error)
        upstream.missing.add(self._path_at(profile))

    def _path_at(self, profile: Profile) -> str:
        has_ids = self._has_ids and not self._needs_chat
        return path_of(profile.kind, self._request, has_ids=has_ids)

    def _check(self, upstream: Upstream, recognise: Recognise | None) -> None:
        """Raise GivenUpError if the upstream has ended an answer that is not what it must be."""
        account, request = self._account, self._request
        if account.ending != "stop":
            return
        if account.num_calls:
            is_whole = True
        else:
            text = "".join(account.shown or ())
            is_whole = not request.tool_call_required and (recognise is None or recognise(text))
        if not is_whole:
            log.warning("the upstream %s did not keep to what binds an answer", upstream.name)
            raise GivenUpError("schema_lost", UNBOUND)

    @property
    def _needs_chat(self) -> bool:
        """Return True if only an upstream's route for chats can answer: it finds tool calls."""
        return self._request.tools is not None

    @property
    def _room(self) -> int:
        """Return how many tokens the answer may still get."""
        if not self._has_ids:
            return self._account.num_left
        num_used = len(self._prompt_ids) + sum(
            1 if isinstance(each, int) else each.num_tokens for each in self._account.generated
        )
        return min(self._account.num_left, self._model.context_length - num_used)

    def _size_of_load(self) -> int:
        """Return about how many tokens of work the request is for its upstream."""
        request = self._request
        size = len(self._prompt_ids)
        if not size:
            turns = request.messages or ()
            num_characters = len(request.prompt or "") + sum(len(each.content) for each in turns)
            size = num_characters // CHARACTERS_PER_TOKEN
        return size + min(self._account.num_left, EXPECTED_TOKENS)

    async def _take(self, num_tokens: int, failed: Upstream | None) -> Upstream:
        """Return the next upstream, counted. Raises GivenUpError if there is none in time.

        The sink is told that it waits, and that another upstream goes on.
        """
        sink, waited = self._account.sink, False

        def wait() -> None:
            nonlocal waited
            waited = True
            sink.interrupted(waits=True)

        able = self._which_are_able()
        try:
            async with asyncio.timeout_at(self._give_up_at):
                upstream = await self._pool.take(
                    *(self._model, self._key, num_tokens, failed, able),
                    asker=self,
                    has_begun=self._account.has_text,
                    on_wait=wait,
                )
        except TimeoutError:
            raise GivenUpError("engine_died", NOT_BACK) from None
        if failed is not None and upstream is not failed:
            failed.counts["failovers"] += 1
        if failed is not None or waited:
            sink.interrupted(waits=False)
        return upstream

    def _which_are_able(self) -> Callable[[Upstream], bool] | None:
        """Return the test that an upstream must pass to get the request; None if all may get it.

        Raises GivenUpError if no upstream can ever answer.
        """
        is_begun = self._account.has_text
        if is_begun and self._bound.binds:
            raise GivenUpError("engine_died", CANNOT_CONTINUE)
        serving = self._pool.serving(self._model)
        if serving and not any(map(self._has_route, serving)):
            raise GivenUpError("unsupported_field", NO_ROUTE)
        some_miss = any(each.missing for each in serving)
        if not (some_miss or is_demanding(self._request) or (is_begun and not self._has_ids)):
            return None
        if is_begun and not any(map(self._can_answer, self._pool.upstreams)):
            raise GivenUpError("engine_died", CANNOT_CONTINUE)
        return self._can_answer

    def _can_answer(self, upstream: Upstream) -> bool:
        """Return True if the upstream can begin the answer, or go on with it."""
        profile, level = upstream.profile, self._model.level
        if profile is None or upstream.serves != self._model.name:
            return False
        if not self._has_route(upstream):
            return False
        if refusal_of(profile, level, self._request, self._bound) is not None:
            return False
        if self._has_ids and not self._needs_chat:
            return True
        return self._ask_with_text(profile, self._request) is not None

    def _has_route(self, upstream: Upstream) -> bool:
        """Return False if the upstream is known to have no route for the request."""
        profile = upstream.profile
        return profile is not None and self._path_at(profile) not in upstream.missing

    def _ask_with_text(self, profile: Profile, request: Request) -> Ask | None:
        return ask_with_text(profile, request, self._account, self._model.level, self._bound)

    async def _ask_of(self, upstream: Upstream) -> Ask:
        profile = upstream.profile
        assert profile is not None
        if not self._has_ids or self._needs_chat:
            request = await without_control_texts(upstream, self._request)
            ask = self._ask_with_text(profile, request)
            if ask is None:
                raise GivenUpError("engine_died", CANNOT_CONTINUE)
            return ask
        ids = await generated_ids_of(upstream, self._account.generated)
        return ask_with_ids(
            *(profile, self._request, self._account),
            [*self._prompt_ids, *ids],
            self._room,
            self._model.marks,
            self._bound,
        )

    async def _continue_at(self, upstream: Upstream) -> None:
        """Have an upstream go on to the end. Raises UpstreamError, RefusedError, GivenUpError."""
        ask = await self._ask_of(upstream)
        account = self._account
        account.begin()
        part = _Part(ask.reader(account), account, lambda: upstream.health.succeed(self))
        bound = MAX_HEARTBEAT_BYTES + account.num_left * MAX_BYTES_PER_TOKEN
        exchange = await upstream.client.open(ask.path, ask.encoded(), part.read, bound)
        try:
            await exchange.until_done(self._silence)
        finally:
            await exchange.leave(gently=ask.path == "/completion")
        part.end(exchange)
        upstream.health.succeed(self)


class _Part:
    """One upstream's part of an answer. The upstream sends events, or an error.

    `on_first` is called with the first token.
    """

    def __init__(self, reader: Reader, account: Account, on_first: Callable[[], None]) -> None:
        self._reader = reader
        self._account = account
        self._on_first = on_first
        self._error = bytearray()
        self._has_got_on = False

    def read(self, exchange: Exchange, data: bytes) -> None:
        """Read bytes of the body. Raises UpstreamError."""
        if not _has_events(exchange):
            self._error += data[: MAX_ERROR_BYTES - len(self._error)]
            return
        self._reader.feed(data)
        if not self._has_got_on and self._account.num_in_part:
            self._has_got_on = True
            self._on_first()
        if self._reader.is_over:
            exchange.finish()
        elif self._account.ending is not None:
            exchange.finish_within(LAST_WORDS_S)

    def end(self, exchange: Exchange) -> None:
        """End the body. Raises UpstreamError and RefusedError."""
        if exchange.status != 200:
            raise failure_of(exchange.status, bytes(self._error), exchange.retry_after)
        if not _has_events(exchange):
            raise GarbageError("it answers with something other than events")
        self._reader.end()


def _has_events(exchange: Exchange) -> bool:
    return exchange.status == 200 and exchange.content_type == "text/event-stream"


def _blamed(num_deaths: int) -> GivenUpError:
    return GivenUpError(
        "engine_died",
        f"The servers that ran the model failed {num_deaths} times at this request. The request"
        " itself may be the cause.",
    )
