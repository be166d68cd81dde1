"""What is asked and when: the load, the lengths, the prompts. Pure: the same seed, the same plan.

In: what a person chose. Out: due times, and the bodies of requests. Not known here: sockets,
clocks, answers.

Synthetic prompts are random words, a different draw for each request, so that a cache of prefixes
in the server makes nothing look faster than it is.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

Api = Literal["chat", "completions"]
Arrivals = Literal["poisson", "constant"]

ROUTES: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}

# Common and short: most vocabularies have each of them, with its space, as one token.
WORDS = (  # noqa: SIM905 - as a list it fills a page
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
    """A number of tokens, or a range of which each request draws one."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """From "128" or "64-256". Raises ValueError."""
        low, _, high = text.partition("-")
        try:
            lengths = cls(int(low), int(high or low))
        except ValueError:
            raise ValueError(f"{text!r} is no length: write 128, or 64-256 for a range") from None
        if not 1 <= lengths.low <= lengths.high:
            raise ValueError(f"{text!r} is no length: it goes from 1 upwards")
        return lengths

    def draw(self, dice: random.Random) -> int:
        """One of the range, all as likely."""
        return dice.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class Load(msgspec.Struct, frozen=True):
    """How requests come, and until when.

    Closed: `concurrency` clients, each of which sends its next request when it has its answer.
    Open: `rate` requests a second, whatever the server does. It ends after `num_requests`, or with
    those that were due within `duration_s`, whichever is first.
    """

    concurrency: int | None = None
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    num_requests: int | None = None
    duration_s: float | None = None

    def describe(self) -> str:
        """In words, for a person."""
        if self.rate is None:
            loop = f"closed loop, {self.concurrency:,} at once"
        else:
            loop = f"open loop, {self.rate:g} requests/s, {self.arrivals} arrivals"
        many = "" if self.num_requests is None else f", {self.num_requests:,} requests"
        until = "" if self.duration_s is None else f", {self.duration_s:g} s"
        return loop + many + until

    def due_times(self, seed: int) -> Iterator[float]:
        """Open loop: when each request is due, in seconds after the first moment. Endless."""
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
    """Where prompts come from: `texts` in turn, or words for about `lengths` tokens.

    A prompt of n words has about `overhead` + n * `tokens_per_word` tokens: the first is the chat
    template's part. Measured by `calibrated`, else as for a vocabulary with all of `WORDS`.
    """

    texts: Sequence[str] = ()
    lengths: Lengths | None = None
    tokens_per_word: float = 1.0
    overhead: float = 0.0

    def draw(self, index: int, dice: random.Random) -> str:
        """The prompt of a request."""
        if self.lengths is None:
            return self.texts[index % len(self.texts)]
        tokens = self.lengths.draw(dice)
        num_words = max(1, round((tokens - self.overhead) / self.tokens_per_word))
        return words(num_words, dice)

    def calibrated(self, few: tuple[int, int], many: tuple[int, int]) -> "Prompts":
        """By two measurements of (words, tokens)."""
        per_word = (many[1] - few[1]) / (many[0] - few[0])
        if per_word <= 0:
            return self
        return msgspec.structs.replace(
            self, tokens_per_word=per_word, overhead=few[1] - per_word * few[0]
        )

    def describe(self) -> str:
        """In words, for a person."""
        if self.lengths is not None:
            return f"random words, about {self.lengths} tokens each"
        return "one prompt" if len(self.texts) == 1 else f"{len(self.texts):,} prompts in turn"


def words(num: int, dice: random.Random) -> str:
    """So many words of no meaning."""
    return " ".join(dice.choices(WORDS, k=num))


class Asking(msgspec.Struct, frozen=True):
    """The form of every request: `fields` go into the body as they are, None leaves one out."""

    api: Api
    model: str
    max_tokens: Lengths
    include_usage: bool = True
    fields: dict[str, Any] = {}

    def body(self, prompt: str, max_tokens: int) -> bytes:
        """A request's body."""
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
        """Those of `num` requests, or endless."""
        dice = random.Random(f"prompts {seed}")  # noqa: S311 - a load, no secret
        for index in itertools.count() if num is None else range(num):
            prompt = prompts.draw(index, dice)
            yield self.body(prompt, self.max_tokens.draw(dice))


def parse_field(text: str) -> tuple[str, Any]:
    """A field of the body from NAME=VALUE: JSON where it is JSON, else text. Raises ValueError."""
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
    """Limits in seconds by name, from "ttft=500ms,itl=50ms". Raises ValueError."""
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
                f"{part!r} is no limit: write ttft=500ms,itl=50ms; {', '.join(SLO_NAMES)} have one"
            )
        limits[name] = limit
    return limits
