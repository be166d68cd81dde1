"""Separates a model's reasoning from its answer by the marks around the reasoning.

In: pieces of text in order. Out: the pieces as thoughts and answer, without the marks and the white
space around them. Not known here: the engine. The marks come from the models' chat templates.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from penstock.engine.protocol import EngineFinish, Feature, Sink
from penstock.events import TokenLogprob
from penstock.request import Message

# The marks that open and close a model's reasoning. If a template has only the closing mark, the
# model itself generates the opening mark.
MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)

# The text that a template appends after the last turn has fewer tokens than this.
NUM_LAST_TOKENS = 16

Part = tuple[Literal["thought", "answer"], str]


def marks_in(template: str) -> tuple[str, str] | None:
    """Return the marks in this chat template, or None."""
    return next((marks for marks in MARKS if marks[1] in template), None)


def reasoning_features(
    template: str, *, has_effort: bool, has_parser: bool = False
) -> tuple[Feature, ...]:
    """Return the reasoning features of a model with this chat template.

    `has_effort`: the template takes degrees of effort. `has_parser`: the model reasons, even if its
    template has no marks.
    """
    features: tuple[Feature, ...] = ("reasoning_effort",) if has_effort else ()
    reasons = has_effort or has_parser or marks_in(template) is not None
    if not reasons or "enable_thinking" in template:
        features += ("reasoning_switch",)
    return features


def begun_answer(messages: Sequence[Message] | None) -> str:
    """Return the text of the assistant's turn at the end, which the answer may continue."""
    last = messages[-1] if messages else Message("user", "")
    return (last.content or last.reasoning).strip() if last.role == "assistant" else ""


def num_last_tokens(begun: str) -> int:
    """Return how many of the prompt's last tokens show whether it opens the reasoning."""
    return NUM_LAST_TOKENS + len(begun.encode())


class Splitter:
    """Splits one answer into reasoning and answer. `is_open`: the prompt opens the reasoning.

    Reasoning comes first or not at all: a mark in the middle of an answer is text.
    """

    def __init__(self, marks: tuple[str, str], *, is_open: bool) -> None:
        self._opens, self._closes = marks
        self._state: Literal["begin", "thought", "answer"] = "thought" if is_open else "begin"
        self._is_blank = True
        """True while the current part has had only white space."""
        self._held = ""
        starts = "|".join(re.escape(self._closes[:n]) for n in range(len(self._closes) - 1, 0, -1))
        self._hold = re.compile(rf"\s*(?:{starts})?\Z")

    @classmethod
    def after(
        cls, marks: tuple[str, str], prompt_end: str, generated: str, begun: str = ""
    ) -> "Splitter":
        """Return a splitter for the rest of an answer, after the text `generated` so far.

        `prompt_end` is the end of the prompt, at least its last `num_last_tokens` tokens. If it
        ends with the text `begun`, the answer goes on from there.
        """
        end = prompt_end.rstrip()
        if begun and end.endswith(begun):
            end, generated = end.removesuffix(begun).rstrip(), begun + generated
        splitter = cls(marks, is_open=end.endswith(marks[0]))
        splitter.push(generated)
        return splitter

    @property
    def has_begun(self) -> bool:
        """True once it is certain whether the text begins with reasoning."""
        return self._state != "begin"

    @property
    def is_thinking(self) -> bool:
        """True while the text is reasoning."""
        return self._state == "thought"

    @property
    def ends_thought(self) -> str:
        """The mark that ends the reasoning, "" if the text is no reasoning."""
        return self._closes if self.is_thinking else ""

    def answer_in(self, text: str) -> str:
        """Return what follows the reasoning in the text so far, "" while the text is reasoning."""
        return "" if self.is_thinking else text.rpartition(self._closes)[2]

    def push(self, text: str) -> list[Part]:
        """Add `text` and return the parts that are certain now, none of them empty."""
        if self._state == "answer" and not self._is_blank:
            return [("answer", text)] if text else []
        return list(self._split(text))

    def flush(self) -> list[Part]:
        """Return the text that was held back, at the end of the answer."""
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
                # The end may be the beginning of a mark: hold it back.
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


class FilterSink:
    """A sink between an engine and a request's sink that passes on every call.

    A subclass defines `delta` and `finish`, to interpret the text. It passes on each token at once,
    without text if its text is held back, as engines do for a part of a character.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.accepted = sink.accepted
        self.started = sink.started
        self.working = sink.working
        self.interrupted = sink.interrupted
        self.cached = sink.cached
        self.prompt_logprobs = sink.prompt_logprobs
        self.reasoning = sink.reasoning
        self.tool_call = sink.tool_call
        self.fail = sink.fail


class SplitSink(FilterSink):
    """A sink that separates reasoning from the answer in an engine's text."""

    def __init__(self, sink: Sink, splitter: Splitter) -> None:
        super().__init__(sink)
        self._splitter = splitter
        self._logprobs: tuple[TokenLogprob, ...] = ()
        """The log probabilities of tokens whose text is held back."""

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Pass on the text that is certain. Only tokens of the answer keep log probabilities."""
        assert isinstance(piece, str)
        # Leading white space of an answer keeps its log probabilities; marks and thoughts do not.
        self._logprobs = logprobs if self._splitter.has_begun else self._logprobs + logprobs
        parts = self._splitter.push(piece)
        if not parts:
            self._sink.delta("", num_tokens, token_ids)
        for number, (kind, text) in enumerate(parts, 1):
            # If a piece has two parts, its tokens count for the second.
            tokens = (num_tokens, token_ids) if number == len(parts) else (0, ())
            self._push(kind, text, *tokens)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Pass on the text that was held back, then the end."""
        for kind, text in self._splitter.flush():
            self._push(kind, text, 0, ())
        self._sink.finish(reason, completion_tokens)

    def _push(self, kind: str, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        if kind == "thought":
            self._sink.reasoning(text, num_tokens, token_ids)
        else:
            self._sink.delta(text, num_tokens, token_ids, self._logprobs)
        self._logprobs = ()
