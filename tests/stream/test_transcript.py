"""A transcript alone: for any cuts, a continuation asks for exactly the tokens that are missing."""

from dataclasses import dataclass, field

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from penstock.events import TokenLogprob, Usage
from penstock.request import Request, UnnamedTokens
from penstock.stream.transcript import Transcript

MAX_TOKENS = 1000
REQUEST = Request(id="a", max_tokens=MAX_TOKENS, prompt="x", stop=("stop",))
PROMPT_IDS = (1, 2, 3)


@dataclass(frozen=True)
class Step:
    """Something that happens to a generation: tokens come, or the engine dies."""

    piece: str | bytes = ""
    num_tokens: int = 1
    is_named: bool = True
    is_logged: bool = True
    is_call: bool = False
    dies: bool = False


@dataclass
class Expected:
    """The expected state of a transcript after some steps."""

    has_logprobs: bool
    generated: list[int | UnnamedTokens] = field(default_factory=list)
    textless_ids: list[int] = field(default_factory=list)
    num_textless: int = 0
    num_with_text: int = 0
    pending_logprobs: list[TokenLogprob] = field(default_factory=list)
    textless_logprobs: list[TokenLogprob] = field(default_factory=list)
    pending_tokens: int = 0

    def add(self, step: Step, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        self.num_textless += step.num_tokens
        self.textless_ids += ids
        self.textless_logprobs += logprobs
        if not step.piece:
            return
        if len(self.textless_ids) == self.num_textless:
            self.generated += self.textless_ids
        else:
            text = step.piece
            text = text if isinstance(text, str) else text.decode("utf-8", "replace")
            self.generated.append(UnnamedTokens(text, self.num_textless))
        self.with_text(step, self.num_textless)
        self.pending_logprobs += self.textless_logprobs
        self.drop()

    def add_call(self, step: Step) -> None:
        assert isinstance(step.piece, str)
        self.generated.append(UnnamedTokens(step.piece, step.num_tokens))
        self.with_text(step, step.num_tokens)

    def with_text(self, step: Step, num_tokens: int) -> None:
        self.num_with_text += num_tokens
        self.pending_tokens += num_tokens

    def drop(self) -> None:
        self.textless_ids, self.num_textless, self.textless_logprobs = [], 0, []


def num_tokens_in(generated: tuple[int | UnnamedTokens, ...]) -> int:
    return sum(1 if isinstance(each, int) else each.num_tokens for each in generated)


pieces = st.sampled_from(["", "", "a", " bc", "é", "\n"]) | st.sampled_from(
    [b"", b"a", b"\xc3", b"\xa9", "\N{WATER WAVE}".encode()[:3]]
)
tokens = st.builds(
    Step,
    piece=pieces,
    num_tokens=st.integers(1, 3),
    is_named=st.booleans(),
    is_logged=st.booleans(),
)
deaths = st.just(Step(dies=True))


def play(transcript: Transcript, steps: list[Step], *, has_logprobs: bool) -> Expected:
    """Play the steps, and check the transcript after each of them."""
    expected = Expected(has_logprobs)
    next_id = 10
    for step in steps:
        if step.dies:
            check_continuation(transcript, expected)
            continue
        if step.is_call:
            assert isinstance(step.piece, str)
            transcript.add_call(step.piece, step.num_tokens)
            expected.add_call(step)
        else:
            ids = tuple(range(next_id, next_id + step.num_tokens)) if step.is_named else ()
            logprobs = tuple(
                TokenLogprob(b"%d" % (next_id + n), -1.0) for n in range(step.num_tokens)
            )
            if not has_logprobs:
                logprobs = ()
            transcript.add(step.piece, step.num_tokens, ids, logprobs)
            expected.add(step, ids, logprobs)
            next_id += step.num_tokens
        if step.piece and step.is_logged:  # the delta takes what is pending
            assert transcript.pending_tokens == expected.pending_tokens
            transcript.pending_tokens, transcript.pending_logprobs = 0, []
            expected.pending_tokens, expected.pending_logprobs = 0, []
        assert transcript.completion_tokens == expected.num_with_text + expected.num_textless
        assert transcript.num_textless == expected.num_textless
    return expected


def check_continuation(transcript: Transcript, expected: Expected) -> None:
    before, num_textless = transcript.completion_tokens, transcript.num_textless
    again = transcript.continuation(REQUEST)
    assert again == msgspec.structs.replace(
        REQUEST,
        prompt_ids=PROMPT_IDS,
        generated=tuple(expected.generated),
        max_tokens=MAX_TOKENS - expected.num_with_text,
    )
    # It asks for exactly what is left, and drops only tokens without text.
    assert again.max_tokens + num_tokens_in(again.generated) == MAX_TOKENS
    assert transcript.completion_tokens == before - num_textless == expected.num_with_text
    assert transcript.pending_tokens == expected.pending_tokens
    assert transcript.pending_logprobs == expected.pending_logprobs
    # It repeats no token that has text.
    ids = [each for each in again.generated if isinstance(each, int)]
    assert len(set(ids)) == len(ids)
    expected.drop()
    assert transcript.continuation(REQUEST) == again


@given(st.lists(tokens | deaths, max_size=30), st.booleans())
def test_a_continuation_asks_for_exactly_what_is_left(
    steps: list[Step], has_logprobs: bool
) -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    expected = play(transcript, steps, has_logprobs=has_logprobs)
    check_continuation(transcript, expected)


@given(st.lists(tokens | deaths, max_size=20), st.integers(0, 5))
def test_the_engine_s_last_count_is_added_to_the_tokens_before_the_continuation(
    steps: list[Step], num_last: int
) -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    expected = play(transcript, [*steps, Step(dies=True)], has_logprobs=False)
    transcript.accept((*PROMPT_IDS, 99))  # a continuation's prompt does not count again
    transcript.finish(num_last)
    assert transcript.usage.prompt_tokens == len(PROMPT_IDS)
    assert transcript.usage.completion_tokens == expected.num_with_text + num_last


@given(
    st.lists(
        st.builds(
            Step,
            piece=st.sampled_from(["", "{", '"a"']),
            num_tokens=st.integers(0, 3),
            is_logged=st.just(True),
            is_call=st.just(True),
        ),
        max_size=10,
    )
)
def test_tool_calls_are_counted_as_unnamed_tokens(steps: list[Step]) -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    check_continuation(transcript, play(transcript, steps, has_logprobs=False))


def test_a_request_whose_prompt_was_not_read_is_sent_again_unchanged() -> None:
    assert Transcript().continuation(REQUEST) is REQUEST


def test_a_released_transcript_keeps_its_count_of_generated_tokens() -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    transcript.add("a", 2, (5, 6))
    transcript.release()
    assert transcript.generated == []
    assert transcript.usage.completion_tokens == 2


def test_the_cached_tokens_are_those_of_the_prompt_before_its_first_token() -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    assert transcript.usage.cached_tokens == 0
    transcript.cached(2)
    transcript.continuation(REQUEST)  # nothing was generated: the next engine begins again
    assert transcript.usage.cached_tokens == 0
    transcript.cached(1)
    transcript.add("a", 1, (5,))
    transcript.continuation(REQUEST)
    transcript.cached(len(PROMPT_IDS) + 1)
    assert transcript.usage.cached_tokens == 1


def test_no_more_tokens_are_cached_than_the_prompt_has() -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    transcript.cached(len(PROMPT_IDS) + 1)
    assert transcript.usage.cached_tokens == len(PROMPT_IDS)


def test_an_engine_that_does_not_know_the_prompt_s_ids_counts_it_later() -> None:
    transcript = Transcript()
    transcript.accept(())
    transcript.add("x", 1, ())
    transcript.cached(3, 11)
    transcript.cached(0, 12)  # another engine's count of the same prompt, with a part of the answer
    transcript.finish(1)
    assert transcript.usage == Usage(11, 1, 3)


def test_a_late_count_is_that_of_the_engine_that_read_the_prompt() -> None:
    transcript = Transcript()
    transcript.accept(PROMPT_IDS)
    transcript.add("x", 1, ())
    transcript.cached(1, 500)
    transcript.finish(1)
    assert transcript.usage == Usage(500, 1, 1)
