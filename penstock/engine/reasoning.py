"""A model's text → what it thinks, and what it answers: told apart by the marks around the former.

In: pieces of text in order. Out: the same without marks and without the white space around them.
Not known here: which engine. The marks are those that models' chat templates have.
"""

import re
from collections.abc import Iterator
from typing import Literal

from penstock.engine.protocol import EngineFinish, Feature, Sink
from penstock.events import TokenLogprob

# What opens and closes a model's reasoning. A template that has the second has the first, too, or
# its model begins with it by itself.
MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)

# What a template puts after the last turn is shorter than so many tokens.
NUM_LAST_TOKENS = 16

Part = tuple[Literal["thought", "answer"], str]


def marks_in(template: str) -> tuple[str, str] | None:
    """The marks that this chat template has."""
    return next((marks for marks in MARKS if marks[1] in template), None)


def reasoning_features(
    template: str, *, has_effort: bool, has_parser: bool = False
) -> tuple[Feature, ...]:
    """What of a request's effort a model with this chat template can heed. `has_effort`: the
    template takes degrees of it; `has_parser`: the model reasons, whatever its marks."""
    features: tuple[Feature, ...] = ("reasoning_effort",) if has_effort else ()
    reasons = has_effort or has_parser or marks_in(template) is not None
    if not reasons or "enable_thinking" in template:
        features += ("reasoning_switch",)
    return features


class Splitter:
    """Splits one answer. `is_open`: its prompt has opened the reasoning already.

    Reasoning comes first or not at all: a mark in the middle of an answer is text.
    """

    def __init__(self, marks: tuple[str, str], *, is_open: bool) -> None:
        self._opens, self._closes = marks
        self._state: Literal["begin", "thought", "answer"] = "thought" if is_open else "begin"
        self._is_blank = True
        """Nothing but white space has come of what is being read."""
        self._held = ""
        starts = "|".join(re.escape(self._closes[:n]) for n in range(len(self._closes) - 1, 0, -1))
        self._hold = re.compile(rf"\s*(?:{starts})?\Z")

    @classmethod
    def after(cls, marks: tuple[str, str], prompt_end: str, said: str) -> "Splitter":
        """One that goes on where this much was `said` to a prompt that ends so (its last
        `NUM_LAST_TOKENS` tokens will do)."""
        splitter = cls(marks, is_open=prompt_end.rstrip().endswith(marks[0]))
        splitter.push(said)
        return splitter

    @property
    def has_begun(self) -> bool:
        """It is known whether there is reasoning."""
        return self._state != "begin"

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now, none of them empty."""
        if self._state == "answer" and not self._is_blank:
            return [("answer", text)] if text else []
        return list(self._split(text))

    def flush(self) -> list[Part]:
        """What was held back: no more text will come."""
        held, self._held = self._held, ""
        kind: Literal["thought", "answer"] = "thought" if self._state == "thought" else "answer"
        return [(kind, held)] if held else []

    def _split(self, text: str) -> Iterator[Part]:
        text = self._held + text
        self._held = ""
        if self._state == "begin":
            found = text.lstrip()
            if self._opens.startswith(found[: len(self._opens)]):
                if len(found) < len(self._opens):
                    self._held = text
                    return
                self._state, text = "thought", found[len(self._opens) :]
            else:
                self._state, self._is_blank = "answer", False
        if self._state == "thought":
            thought, mark, after = text.partition(self._closes)
            if self._is_blank:
                thought = thought.lstrip()
            if mark:
                self._state, text = "answer", after
                thought = thought.rstrip()
            else:
                # Of that which may be the end there is no telling yet.
                end = self._hold.search(thought)
                assert end is not None
                thought, self._held = thought[: end.start()], thought[end.start() :]
            if thought:
                self._is_blank = False
                yield "thought", thought
            if not mark:
                return
            self._is_blank = True
        if self._is_blank:
            text = text.lstrip()
        if text:
            self._is_blank = False
            yield "answer", text


class SplitSink:
    """Between an engine that tells only text and the request's sink. Tokens of which nothing can be
    told yet are told without text, as those of half a character are."""

    def __init__(self, sink: Sink, splitter: Splitter) -> None:
        self._sink = sink
        self._splitter = splitter
        # Of tokens whose text is held back.
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self.accepted = sink.accepted
        self.started = sink.started
        self.working = sink.working
        self.reasoning = sink.reasoning
        self.tool_call = sink.tool_call
        self.fail = sink.fail

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Tell what is certain. The log probabilities are the answer's."""
        assert isinstance(piece, str)
        # Those of white space at the beginning are kept; marks and what is around them have none.
        self._logprobs = logprobs if self._splitter.has_begun else self._logprobs + logprobs
        parts = self._splitter.push(piece)
        if not parts:
            self._sink.delta("", num_tokens, token_ids)
        for number, (kind, text) in enumerate(parts, 1):
            # Those of a piece with two parts go with the second.
            tokens = (num_tokens, token_ids) if number == len(parts) else (0, ())
            self._tell(kind, text, *tokens)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Tell what was held back, and the end."""
        for kind, text in self._splitter.flush():
            self._tell(kind, text, 0, ())
        self._sink.finish(reason, completion_tokens)

    def _tell(self, kind: str, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        if kind == "thought":
            self._sink.reasoning(text, num_tokens, token_ids)
        else:
            self._sink.delta(text, num_tokens, token_ids, self._logprobs)
        self._logprobs = ()
