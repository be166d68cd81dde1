"""Keeps account of one request's answer so far, from all upstreams that worked on it.

In: what the readers of answers find. Out: calls of the request's sink, within bounds, and what an
answer must begin with to go on elsewhere. Not known here: upstreams, HTTP.

Tokens without text wait for the next text: they may be a part of a character. If their upstream
dies, nobody has seen them, and the next upstream generates them anew.
"""

from penstock.engine.protocol import EngineFinish, Sink
from penstock.engine.remote.failures import GarbageError, RefusedError
from penstock.events import TokenLogprob
from penstock.request import Request, UnnamedTokens

# No vocabulary has longer tokens on average.
MAX_TOKEN_CHARACTERS = 1024
NO_LOGPROBS = "no_logprobs"
"""The code of the refusal of an upstream that does not report log probabilities."""


class Account:
    """Passes an answer on to `sink`, and keeps it. With `keeps_text` it keeps all of the text.

    With `knows_prompt` the upstreams get the prompt as token ids, so nobody needs their count.
    """

    def __init__(
        self,
        request: Request,
        sink: Sink,
        vocabulary_size: int,
        *,
        keeps_text: bool = False,
        knows_prompt: bool = False,
    ) -> None:
        self.sink = sink
        self.num_tokens = 0
        """The tokens that the sink has got."""
        self.generated: list[int | UnnamedTokens] = list(request.generated)
        """The whole answer so far, also what was generated before this request."""
        self.num_calls = 0
        """The tool calls that have begun."""
        self.has_thoughts = request.separate_reasoning and bool(request.generated)
        """True if the answer has, or may have, reasoning that its upstream separated."""
        self.ending: EngineFinish | None = None
        """Why the answer ended; None until it has."""
        self.usage = 0
        """The tokens of this part of the answer as its upstream counts them; 0 if it does not."""
        self.shown: list[str] | None = [] if keeps_text else None
        """The text that the sink has got, for an answer that is checked when it is whole."""
        self.num_top = request.top_logprobs
        """How many likely tokens are reported at each place; None without log probabilities."""
        self.parallel_calls = request.parallel_calls
        self._max_tokens = request.max_tokens
        self._room = (request.max_tokens + 4) * MAX_TOKEN_CHARACTERS
        self._max_id = vocabulary_size or 2**31
        self._held: list[int] = []
        self._num_held = 0
        self._held_logprobs: tuple[TokenLogprob, ...] = ()
        self._has_logprobs = False
        self._before = 0
        self._began_with_text = self.has_text
        self._knows_prompt = knows_prompt
        self._told = (0, 0)
        self._separates = request.separate_reasoning

    @property
    def has_text(self) -> bool:
        """Return True if the answer has begun."""
        return bool(self.generated)

    @property
    def text(self) -> str:
        """Return the text of the answer so far, if no token has an id."""
        return "".join(each.text for each in self.generated if isinstance(each, UnnamedTokens))

    @property
    def num_left(self) -> int:
        """Return how many tokens the answer may still get."""
        return self._max_tokens - self.num_tokens

    @property
    def num_in_part(self) -> int:
        """Return how many tokens came from the upstream that works on the answer now."""
        return self.num_tokens + self._num_held - self._before

    def begin(self) -> None:
        """Begin a part of the answer, from another upstream."""
        self._held, self._num_held, self._held_logprobs = [], 0, ()
        self._began_with_text = self.has_text
        self._before = self.num_tokens
        self.usage = 0

    def delta(
        self,
        text: str,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Add text and tokens. `token_ids` has all their ids, or none.

        Raises GarbageError, and RefusedError if the log probabilities that were asked for are not
        there.
        """
        self._check(text, num_tokens)
        if self.num_top is not None:
            logprobs = self._with_held(text, num_tokens, logprobs)
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self._max_id:
            raise GarbageError("it sent a token that its model does not have")
        if not text:
            self._num_held += num_tokens
            self._held += token_ids
            return
        if self._num_held:
            num_tokens += self._num_held
            token_ids = (*self._held, *token_ids)
            self._held, self._num_held = [], 0
        self.num_tokens += num_tokens
        if len(token_ids) == num_tokens:
            self.generated += token_ids
        else:
            token_ids = ()
            self.generated.append(UnnamedTokens(text, num_tokens))
        if self.shown is not None:
            self.shown.append(text)
        self.sink.delta(text, num_tokens, token_ids, logprobs)

    def reasoning(
        self, text: str, num_tokens: int, logprobs: tuple[TokenLogprob, ...] = ()
    ) -> None:
        """Add reasoning that the upstream has separated. Raises GarbageError and RefusedError."""
        if not self._separates:
            self.delta(text, num_tokens, (), logprobs)
            return
        self._check(text, num_tokens)
        self._held_logprobs = ()  # reasoning has none
        self.has_thoughts = True
        self.num_tokens += num_tokens
        self.generated.append(UnnamedTokens(text, num_tokens))
        self.sink.reasoning(text, num_tokens, ())

    def tool_call(
        self, number: int, call_id: str, name: str, arguments: str, num_tokens: int
    ) -> None:
        """Add to a tool call. Raises GarbageError unless calls come in order, each named first."""
        self._check(arguments + name + call_id, num_tokens)
        is_new = number == self.num_calls
        if not (is_new or number == self.num_calls - 1) or is_new != bool(name and call_id):
            raise GarbageError("it sent tool calls out of order")
        self.num_calls += is_new
        self.num_tokens += num_tokens
        self.generated.append(UnnamedTokens(arguments, num_tokens))
        self.sink.tool_call(number, call_id, name, arguments, num_tokens)

    def prompt(self, num_tokens: int, num_cached: int) -> None:
        """Note how the upstream counts what it was asked: the tokens, and those in its cache.

        If a part of the answer was in what it was asked, its count is not the prompt's.
        """
        needs_none = self._began_with_text or self._knows_prompt
        counts = (max(0, num_cached), 0 if needs_none else num_tokens)
        if any(counts) and counts != self._told:
            self._told = counts
            self.sink.cached(*counts)

    def end(self, reason: EngineFinish) -> None:
        """Note why the answer ended. The first reason holds."""
        self.ending = self.ending or reason

    def finish(self, *, counts_exactly: bool) -> None:
        """Tell the sink that the answer has ended.

        With `counts_exactly` every token was seen, and an upstream's other count is wrong.
        Otherwise the upstream's count holds, if it is possible.
        """
        if self._num_held:
            ids = tuple(self._held) if len(self._held) == self._num_held else ()
            self.sink.delta("", self._num_held, ids)
            self.num_tokens += self._num_held
            self._num_held = 0
        total = self.num_tokens
        if not counts_exactly and self.usage:
            total = self._before + self.usage
            if not self.num_tokens <= total <= self._max_tokens:
                total = self.num_tokens
        self.sink.finish(self.ending or "stop", total)

    def _with_held(
        self, text: str, num_tokens: int, logprobs: tuple[TokenLogprob, ...]
    ) -> tuple[TokenLogprob, ...]:
        """Return the log probabilities of the tokens that `text` ends; hold them without text."""
        if len(logprobs) > num_tokens:
            raise GarbageError("it sent more log probabilities than tokens")
        logprobs = self._held_logprobs + logprobs
        self._held_logprobs = () if text else logprobs
        if text and not logprobs:
            if not self._has_logprobs:
                raise RefusedError(200, NO_LOGPROBS)
            raise GarbageError("it sent a token without its log probability")
        self._has_logprobs = self._has_logprobs or bool(text)
        return logprobs if text else ()

    def _check(self, text: str, num_tokens: int) -> None:
        if num_tokens < 0 or self.num_tokens + self._num_held + num_tokens > self._max_tokens:
            raise GarbageError("it sent another number of tokens than it was asked for")
        if len(text) > self._room:
            raise GarbageError("it sent more text than its tokens can have")
        self._room -= len(text)
