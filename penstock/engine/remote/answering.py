"""One answer, by one upstream after the other.

In: a request, its prompt, and the pool of upstreams. Out: calls of its `Account`. Each upstream
goes on where the one before it failed. Not known here: what upstreams are asked, and how they are
looked at.
"""

import asyncio

from penstock.engine.remote.account import Account
from penstock.engine.remote.answers import Reader
from penstock.engine.remote.asking import Ask, ask_with_ids, ask_with_text
from penstock.engine.remote.control import without_control_texts
from penstock.engine.remote.failures import GarbageError, GivenUpError, UpstreamError
from penstock.engine.remote.http import Exchange
from penstock.engine.remote.models import Model
from penstock.engine.remote.pool import Pool, Upstream
from penstock.engine.remote.probing import failure_of
from penstock.engine.remote.prompts import generated_ids_of
from penstock.engine.remote.routing import key_of
from penstock.request import Request

MAX_DEATHS_IN_A_ROW = 2
MAX_DEATHS = 20
MAX_ERROR_BYTES = 64 * 1024
MAX_HEARTBEAT_BYTES = 16 * 1024 * 1024
MAX_BYTES_PER_TOKEN = 16 * 1024
# Only so many of the answer's tokens count as load: nobody knows how long it becomes.
EXPECTED_TOKENS = 256
CHARACTERS_PER_TOKEN = 4
NOT_BACK = "No upstream came back in time. Send the request again later."
CANNOT_CONTINUE = (
    "The server that ran the model stopped, and no other can continue this answer from its middle."
    " Send the request again."
)


class Answering:
    """The answer of `model` to `request`.

    An upstream has failed after `silence` seconds without a byte. The answer is given up after
    `patience` seconds without an upstream.
    """

    def __init__(
        self,
        pool: Pool,
        model: Model,
        request: Request,
        prompt_ids: tuple[int, ...],
        account: Account,
        *,
        silence: float,
        patience: float,
    ) -> None:
        self._pool = pool
        self._model = model
        self._request = request
        self._prompt_ids = prompt_ids
        self._account = account
        self._silence = silence
        self._patience = patience
        self._has_ids = model.level == "ids"
        self._key = key_of(request)

    async def run(self) -> None:
        """Answer to the end. Raises GivenUpError and RefusedError."""
        account = self._account
        num_deaths = num_in_a_row = 0
        failed: Upstream | None = None
        while account.ending is None and self._room > 0:
            before = account.num_tokens
            num_tokens = self._size_of_load()
            upstream = await self._take(num_tokens, failed)
            try:
                await self._continue_at(upstream)
            except UpstreamError as error:
                upstream.fail(error)
                failed = upstream
                if error.began:
                    num_deaths += 1
                    num_in_a_row = num_in_a_row + 1 if account.num_tokens == before else 0
                if num_in_a_row >= MAX_DEATHS_IN_A_ROW or num_deaths >= MAX_DEATHS:
                    raise _blamed(num_deaths) from None
            finally:
                upstream.health.drop()
                self._pool.give_back(upstream, num_tokens)
        if account.ending is None:
            account.end("length")
        account.finish(counts_exactly=self._has_ids and not self._needs_chat)

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
        """Return how many tokens the request means for its upstream, about."""
        request = self._request
        size = len(self._prompt_ids)
        if not size:
            turns = request.messages or ()
            num_characters = len(request.prompt or "") + sum(len(each.content) for each in turns)
            size = num_characters // CHARACTERS_PER_TOKEN
        return size + min(self._account.num_left, EXPECTED_TOKENS)

    async def _take(self, num_tokens: int, failed: Upstream | None) -> Upstream:
        """Return the next upstream, counted. Raises GivenUpError if there is none in time."""
        able: list[Upstream] | None = None
        if self._account.has_text and not (self._has_ids and not self._needs_chat):
            able = [each for each in self._pool.upstreams if self._can_continue_at(each)]
            if not able:
                raise GivenUpError("engine_died", CANNOT_CONTINUE)
        try:
            async with asyncio.timeout(self._patience):
                return await self._pool.take(
                    self._model,
                    self._key,
                    num_tokens,
                    failed,
                    able,
                    has_begun=self._account.has_text,
                )
        except TimeoutError:
            raise GivenUpError("engine_died", NOT_BACK) from None

    def _can_continue_at(self, upstream: Upstream) -> bool:
        profile = upstream.profile
        if profile is None or upstream.serves != self._model.name:
            return False
        return ask_with_text(profile, self._request, self._account) is not None

    async def _ask_of(self, upstream: Upstream) -> Ask:
        profile = upstream.profile
        assert profile is not None
        if not self._has_ids or self._needs_chat:
            request = await without_control_texts(upstream, self._request)
            ask = ask_with_text(profile, request, self._account)
            if ask is None:
                raise GivenUpError("engine_died", CANNOT_CONTINUE)
            return ask
        ids = await generated_ids_of(upstream, self._account.generated)
        return ask_with_ids(
            *(profile, self._request, self._account),
            [*self._prompt_ids, *ids],
            self._room,
            self._model.marks,
        )

    async def _continue_at(self, upstream: Upstream) -> None:
        """Have an upstream go on to the end. Raises UpstreamError, RefusedError, GivenUpError."""
        ask = await self._ask_of(upstream)
        account = self._account
        account.begin()
        part = _Part(ask.reader(account), account, upstream)
        bound = MAX_HEARTBEAT_BYTES + account.num_left * MAX_BYTES_PER_TOKEN
        exchange = await upstream.client.open(ask.path, ask.encoded(), part.read, bound)
        try:
            await exchange.until_done(self._silence)
        finally:
            await exchange.leave(gently=ask.path == "/completion")
        part.end(exchange)
        upstream.health.succeed()


class _Part:
    """What one upstream sends of an answer: events, or an error."""

    def __init__(self, reader: Reader, account: Account, upstream: Upstream) -> None:
        self._reader = reader
        self._account = account
        self._upstream = upstream
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
            self._upstream.health.succeed()
        if self._reader.is_over:
            exchange.finish()

    def end(self, exchange: Exchange) -> None:
        """End the body. Raises UpstreamError and RefusedError."""
        if exchange.status != 200:
            raise failure_of(exchange.status, bytes(self._error))
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
