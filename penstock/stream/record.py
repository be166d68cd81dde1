"""The record of a stream: what it was opened with, as one typed value.

A record holds everything that another process needs to continue the stream, together with its
log and its transcript. It is stored in the header of the stream's log (see `entries`).
"""

import time
from typing import Any

import msgspec

from penstock.request import Request
from penstock.stream.budget import Claim, claim_of
from penstock.stream.quotas import ANYBODY, Owner


class SavedForm(msgspec.Struct, frozen=True):
    """How a stream is shown to its readers.

    `dialect` names the dialect that opened the stream (see `api.dialect`). `options` are that
    dialect's own choices for this answer, as JSON values.
    """

    dialect: str = ""
    options: dict[str, Any] = {}


class ChoiceGroup(msgspec.Struct, frozen=True):
    """The streams that are the choices of one answer.

    `first_id` is the id of the first stream, which names the whole group. `number` counts this
    stream from 0. Cancelling the first stream cancels all of them. `counts_prompt` is False if
    an earlier choice has the same prompt.
    """

    first_id: str
    number: int
    size: int
    counts_prompt: bool = True


class StreamRecord(msgspec.Struct, frozen=True):
    """What a stream was opened with.

    A `resumable` stream outlives its connection and can be read again. `timeout` is how long the
    stream may take from its admission to its end, in seconds; None means the server's limit.
    `form` says how readers see the stream. `choices` is set if the stream is one of several
    choices. `has_limit` is True if the client named the token limit. `name` is what other requests
    find the stream by (see `api.joining`), empty if it has none. `opened_at` is the wall-clock
    time of the admission, in seconds since 1970. `token_secret` proves the tokens that let others
    read the stream (see `web.stream_tokens`); it is empty if there can be none.
    """

    request: Request
    owner: Owner = ANYBODY
    resumable: bool = False
    timeout: float | None = None
    form: SavedForm = SavedForm()
    choices: ChoiceGroup | None = None
    has_limit: bool = True
    name: str = ""
    opened_at: float = msgspec.field(default_factory=time.time)
    token_secret: bytes = b""

    @property
    def id(self) -> str:
        """Return the stream's unguessable id."""
        return self.request.id

    @property
    def first_id(self) -> str:
        """Return the id that names the answer: the first choice's, or the stream's own."""
        return self.id if self.choices is None else self.choices.first_id

    @property
    def counts_prompt(self) -> bool:
        """Return True if the prompt counts when the tokens of streams are added up."""
        return self.choices is None or self.choices.counts_prompt

    def claim(self) -> Claim | None:
        """Return the tokens that the stream may use, None if its owner has no limit of them."""
        per_minute = self.owner.limits.tokens_per_minute
        if per_minute is None:
            return None
        return claim_of(
            self.request,
            per_minute,
            has_limit=self.has_limit,
            num_choices=1 if self.choices is None else self.choices.size,
            counts_prompt=self.counts_prompt,
        )

    def limited_to(self, max_tokens: int) -> "StreamRecord":
        """Return the record with at most this token limit."""
        request = self.request
        if max_tokens >= request.max_tokens:
            return self
        min_tokens = min(request.min_tokens, max_tokens)
        request = msgspec.structs.replace(request, max_tokens=max_tokens, min_tokens=min_tokens)
        return msgspec.structs.replace(self, request=request)
