"""What an engine has generated for one request: enough to continue the request on another engine.

The transcript records the ids of the prompt and of every generated token. `continuation` turns
them into the request that continues the generation. It knows nothing about logs, time or tasks.
"""

from array import array

import msgspec

from penstock.events import TokenLogprob, Usage
from penstock.request import Request, UnnamedTokens
from penstock.stream.footprint import PACKED_TOKEN_BYTES, TOKEN_BYTES
from penstock.text import Text


class Transcript:
    """The tokens of one generation so far.

    Tokens that have no text yet (the first bytes of a character) are *textless*: a continuation
    generates them again, because half a character is no place to continue from. Tokens whose text
    is not in the log yet are *pending*: the next delta carries them.
    """

    __slots__ = (
        "_continued_from",
        "_num_reported",
        "_num_textless_logprobs",
        "_textless_ids",
        "cached_tokens",
        "completion_tokens",
        "generated",
        "has_called",
        "num_textless",
        "pending_ids",
        "pending_logprobs",
        "pending_tokens",
        "prompt_ids",
        "prompt_tokens",
        "reproducible",
    )

    def __init__(self) -> None:
        self.prompt_ids: array[int] | None = None
        """The prompt's token ids, once the engine has accepted the prompt."""
        self.prompt_tokens = 0
        """The number of the prompt's tokens, from an engine that does not know their ids."""
        self.generated: list[int | UnnamedTokens] = []
        """The generated tokens, up to the last token whose text has come."""
        self.has_called = False
        """True once part of a tool call has come: no other call can take its place."""
        self.completion_tokens = 0
        self.cached_tokens = 0
        """The prompt's tokens that were in the engine's cache when the first token was generated
        from them."""
        self.num_textless = 0
        self._textless_ids: tuple[int, ...] = ()
        self.pending_tokens = 0
        self.pending_ids: tuple[int, ...] = ()
        """The known ids of the pending tokens."""
        self.pending_logprobs: list[TokenLogprob] = []
        self._num_textless_logprobs = 0
        self._num_reported = 0
        """The bytes of the text held back whose tokens' log probabilities were taken already."""
        self._continued_from = 0
        self.reproducible = True
        """False once a sampled generation with a seed was continued: the seed alone no longer
        gives this text."""

    @property
    def usage(self) -> Usage:
        """Return the token counts so far."""
        prompt_tokens = self.prompt_tokens or (len(self.prompt_ids) if self.prompt_ids else 0)
        return Usage(prompt_tokens, self.completion_tokens, self.cached_tokens)

    def accept(self, prompt_ids: tuple[int, ...]) -> None:
        """Record the prompt's tokens. A continuation's prompt is the same, so it is ignored."""
        if self.prompt_ids is None:
            self.prompt_ids = array("I", prompt_ids)

    def cached(self, num_tokens: int, prompt_tokens: int = 0) -> None:
        """Record how much of the prompt was in the engine's cache.

        Once there are tokens, this is ignored: the engine has the same prompt in several steps, or
        another engine reads it once more. `prompt_tokens` is the prompt's length from an engine
        that does not know the prompt's ids for certain: its first count holds, whenever it comes.
        """
        if self.prompt_ids is None:
            return
        if prompt_tokens:
            if not self.prompt_tokens:
                self.prompt_tokens = prompt_tokens
                self.cached_tokens = min(num_tokens, prompt_tokens)
        elif not self.generated:
            self.cached_tokens = min(num_tokens, len(self.prompt_ids))

    def add(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
        *,
        is_reasoning: bool = False,
    ) -> None:
        """Record tokens and their text; `piece` is empty for textless tokens.

        `token_ids` is empty if the engine did not name them. `is_reasoning`: the text precedes the
        answer.
        """
        self.completion_tokens += num_tokens
        self.pending_tokens += num_tokens
        self.pending_ids += token_ids
        if logprobs:
            self.pending_logprobs += logprobs
            self._num_textless_logprobs = (
                0 if piece else self._num_textless_logprobs + len(logprobs)
            )
        if self.num_textless or not piece:
            token_ids = self._textless_ids + token_ids
            num_tokens += self.num_textless
        if not piece:
            self._textless_ids, self.num_textless = token_ids, num_tokens
            return
        if len(token_ids) == num_tokens:
            self.generated += token_ids
        else:
            text = piece if isinstance(piece, str) else piece.decode("utf-8", "replace")
            self.generated.append(UnnamedTokens(text, num_tokens, is_reasoning))
        self._textless_ids, self.num_textless = (), 0

    def add_call(self, arguments: str, num_tokens: int) -> None:
        """Record part of a tool call; engines do not name its tokens."""
        self.has_called = True
        self.completion_tokens += num_tokens
        self.pending_tokens += num_tokens
        self.generated.append(UnnamedTokens(arguments, num_tokens))

    def take_logprobs(self, text: str, held: Text | None) -> tuple[TokenLogprob, ...]:
        """Return the pending log probabilities that belong to `text`, and forget all of them.

        All of them belong to it, unless a stop string cut it. `held` holds back what may begin one.
        """
        logprobs, self.pending_logprobs = self.pending_logprobs, []
        if held is None:
            return tuple(logprobs)
        if held.stopped:
            left = len(text.encode()) - self._num_reported
            for index, each in enumerate(logprobs):
                if left <= 0:
                    return tuple(logprobs[:index])
                left -= len(each.token)
        self._num_reported = len(held.held.encode())
        return tuple(logprobs)

    def finish(self, completion_tokens: int) -> None:
        """Take over the engine's own final count, which excludes tokens before a continuation."""
        self.completion_tokens = self._continued_from + completion_tokens

    def continuation(self, request: Request) -> Request:
        """Return the request that continues `request` from here."""
        if self.prompt_ids is None:  # the engine stopped before it had read the prompt
            return request
        self._drop_textless()
        self._continued_from = self.completion_tokens
        if not self.generated:
            self.cached_tokens = 0
        sampling = request.sampling
        if self.generated and sampling.seed is not None and sampling.temperature > 0:
            self.reproducible = False
        return msgspec.structs.replace(
            request,
            max_tokens=request.max_tokens - self.completion_tokens,
            min_tokens=max(0, request.min_tokens - self.completion_tokens),
            prompt_ids=tuple(self.prompt_ids),
            generated=tuple(self.generated),
        )

    def release(self) -> None:
        """Forget the tokens of a generation that has ended; the counts stay."""
        self.prompt_ids, self.generated = None, []
        self._textless_ids = self.pending_ids = ()
        self.pending_logprobs = []

    def num_bytes(self) -> int:
        """Return how much memory the tokens take, in bytes."""
        num_prompt_ids = 0 if self.prompt_ids is None else len(self.prompt_ids)
        return num_prompt_ids * PACKED_TOKEN_BYTES + len(self.generated) * TOKEN_BYTES

    def _drop_textless(self) -> None:
        self.completion_tokens -= self.num_textless
        self.pending_tokens -= self.num_textless
        self.pending_ids = self.pending_ids[: len(self.pending_ids) - len(self._textless_ids)]
        self._textless_ids, self.num_textless = (), 0
        kept = len(self.pending_logprobs) - self._num_textless_logprobs
        del self.pending_logprobs[kept:]
        self._num_textless_logprobs = 0
