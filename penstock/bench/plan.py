"""The plan of a run: load, lengths, prompts. Pure: the same seed gives the same plan.

In: the user's choices. Out: due times and the bodies of requests. Not known here: sockets, clocks,
answers.

Synthetic prompts are random words, drawn anew for each request, so that a prefix cache in the
server does not make it look faster than it is.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

Api = Literal["chat", "completions"]
Arrivals = Literal["poisson", "constant"]

ROUTES: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}

# Common, short words: in most vocabularies each word with its space is one token.
WORDS = (  # noqa: SIM905 - a list would fill a page
    "the of and to in is you that it he was for on are as with his they at be this have from or"
    " one had by word but not what all were we when your can said there use an each which she do"
    " how their if will up other about out many then them these so some her would make like him"
    " into time has look two more write go see number no way could people my than first water been"
    " call who oil its now find long down day did get come made may part over new sound take only"
    " little work know place year live me back give most very after thing our just name good man"
    " think say great where help through much before line right too mean old any same tell boy"
    " follow came want show also around form three small set put end does another well large must"
    " big even such because turn here why ask went men read need land home us move try kind hand"
).split()


class Lengths(msgspec.Struct, frozen=True):
    """A range of token counts, `low` to `high`, from which each request draws one."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Parse a length like "128" or "64-256". Raises ValueError if it is malformed."""
        low, _, high = text.partition("-")
        try:
            lengths = cls(int(low), int(high or low))
        except ValueError:
            raise ValueError(
                f"{text!r} is not a length: write 128, or 64-256 for a range"
            ) from None
        if not 1 <= lengths.low <= lengths.high:
            raise ValueError(
                f"{text!r} is not a length: it must be 1 or more, and a range must not descend"
            )
        return lengths

    def draw(self, dice: random.Random) -> int:
        """Draw a number from the range, each with the same probability."""
        return dice.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class Load(msgspec.Struct, frozen=True):
    """When requests are sent, and when the run ends.

    Closed loop: `concurrency` clients, each of which sends its next request when it has its answer.
    Open loop: `rate` requests per second, however fast the server answers. The run ends after
    `num_requests` requests, or when no more are due within `duration_s` seconds, whichever is
    first.
    """

    concurrency: int | None = None
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    num_requests: int | None = None
    duration_s: float | None = None

    def describe(self) -> str:
        """Describe the load in words, for the report."""
        if self.rate is None:
            loop = f"closed loop, {self.concurrency:,} at once"
        else:
            loop = f"open loop, {self.rate:g} requests/s, {self.arrivals} arrivals"
        many = "" if self.num_requests is None else f", {self.num_requests:,} requests"
        until = "" if self.duration_s is None else f", {self.duration_s:g} s"
        return loop + many + until

    def due_times(self, seed: int) -> Iterator[float]:
        """Yield when each request of an open loop is due, in seconds after the start. Endless."""
        assert self.rate is not None
        if self.arrivals == "constant":
            for index in itertools.count():
                yield index / self.rate
        dice = random.Random(f"arrivals {seed}")  # noqa: S311 - a load, no secret
        due = 0.0
        while True:
            due += dice.expovariate(self.rate)
            yield due


class Prompts(msgspec.Struct, frozen=True):
    """A source of prompts: `texts` in turn, or random words for about `lengths` tokens.

    A prompt of n words has about `overhead` + n * `tokens_per_word` tokens. The overhead is that of
    the chat template. `calibrated` measures both; the defaults fit a vocabulary that has all of
    `WORDS`.
    """

    texts: Sequence[str] = ()
    lengths: Lengths | None = None
    tokens_per_word: float = 1.0
    overhead: float = 0.0

    def draw(self, index: int, dice: random.Random) -> str:
        """Return the prompt of the request with this index."""
        if self.lengths is None:
            return self.texts[index % len(self.texts)]
        tokens = self.lengths.draw(dice)
        num_words = max(1, round((tokens - self.overhead) / self.tokens_per_word))
        return words(num_words, dice)

    def calibrated(self, few: tuple[int, int], many: tuple[int, int]) -> "Prompts":
        """Return these prompts, calibrated with two measurements of (words, tokens)."""
        per_word = (many[1] - few[1]) / (many[0] - few[0])
        if per_word <= 0:
            return self
        return msgspec.structs.replace(
            self, tokens_per_word=per_word, overhead=few[1] - per_word * few[0]
        )

    def describe(self) -> str:
        """Describe the prompts in words, for the report."""
        if self.lengths is not None:
            return f"random words, about {self.lengths} tokens each"
        return "one prompt" if len(self.texts) == 1 else f"{len(self.texts):,} prompts in turn"


def words(num: int, dice: random.Random) -> str:
    """Return `num` random words, joined by spaces."""
    return " ".join(dice.choices(WORDS, k=num))


class RequestTemplate(msgspec.Struct, frozen=True):
    """The template for the body of every request.

    `fields` override the body's own fields. A field with the value None is left out.
    """

    api: Api
    model: str
    max_tokens: Lengths
    include_usage: bool = True
    fields: dict[str, Any] = {}

    def body(self, prompt: str, max_tokens: int) -> bytes:
        """Return the body of one request as JSON."""
        body: dict[str, Any] = {"model": self.model}
        if self.api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        body |= {"max_tokens": max_tokens, "stream": True}
        if self.include_usage:
            body["stream_options"] = {"include_usage": True}
        body |= self.fields
        return msgspec.json.encode({k: v for k, v in body.items() if v is not None})

    def bodies(self, prompts: Prompts, seed: int, num: int | None = None) -> Iterator[bytes]:
        """Yield the bodies of `num` requests, without end if `num` is None."""
        dice = random.Random(f"prompts {seed}")  # noqa: S311 - a load, no secret
        for index in itertools.count() if num is None else range(num):
            prompt = prompts.draw(index, dice)
            yield self.body(prompt, self.max_tokens.draw(dice))


def parse_field(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE, where the value is JSON or else text. Raises ValueError if malformed."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"{text!r}: write NAME=VALUE, like temperature=0")
    try:
        return name, msgspec.json.decode(value)
    except msgspec.DecodeError:
        return name, value


SLO_NAMES = ("ttft", "itl", "e2e")
_UNITS = {"ms": 1e-3, "s": 1.0}


def parse_slo(text: str) -> dict[str, float]:
    """Parse limits like "ttft=500ms,itl=50ms" into seconds by name. Raises ValueError."""
    limits = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        unit = "ms" if value.endswith("ms") else "s"
        try:
            limit = float(value.removesuffix(unit)) * _UNITS[unit]
        except ValueError:
            limit = -1.0
        if name not in SLO_NAMES or not value.endswith(unit) or not 0 < limit < float("inf"):
            raise ValueError(
                f"{part!r} is not a limit: write ttft=500ms,itl=50ms"
                f" (you can limit {', '.join(SLO_NAMES)})"
            )
        limits[name] = limit
    return limits
