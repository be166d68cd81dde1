"""The format of one answer of vLLM: how it is bound and how its text is read.

In: what `chats` has decided. Out: vLLM's arguments, and the sink that reads the answer. An answer
that is continued is read again from its beginning first, so that calls and reasoning are found in
the rest. Does not import vLLM.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from penstock.engine.protocol import Sink
from penstock.engine.reasoning import SplitSink, Splitter, begun_answer, num_last_tokens
from penstock.engine.tools import CallForm, CallParser, CallSink
from penstock.engine.vllm.answers import Parse, Parsed, ParsingSink
from penstock.request import Request


class CannotContinueError(Exception):
    """The answer so far ends within the beginning of a tool call, where no grammar can begin."""


@dataclass(frozen=True)
class Begun:
    """The part of an answer that exists before vLLM generates the rest.

    `prompt_ids` and `generated` are the tokens of the prompt and of the answer so far. `turn` is
    the text of the assistant's turn at the prompt's end, which the answer may continue.
    """

    prompt_ids: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    turn: str = ""

    @classmethod
    def of(cls, request: Request, prompt_ids: tuple[int, ...]) -> "Begun":
        """Return what there is of the answer to a request or a continuation."""
        # vLLM reports the id of every token, so there are no `UnnamedTokens`.
        generated = tuple(each for each in request.generated if isinstance(each, int))
        return cls(prompt_ids, generated, begun_answer(request.messages))

    def ids(self) -> list[int]:
        """Return all tokens."""
        return [*self.prompt_ids, *self.generated]

    def text(self, tokenizer: Any, shows_special_tokens: bool) -> str:
        """Return the text of the answer so far."""
        return text_of(list(self.generated), tokenizer, shows_special_tokens)

    def splitter(self, marks: tuple[str, str], text: str, tokenizer: Any) -> Splitter:
        """Return the splitter for what follows the answer's `text` so far."""
        last = list(self.prompt_ids[-num_last_tokens(self.turn) :])
        return Splitter.after(marks, text_of(last, tokenizer, True), text, self.turn)


@dataclass(frozen=True)
class AnswerFormat:
    """How vLLM constrains the answer to one request, and how its text is read.

    `structure` is the structure that the answer must have (vLLM's `StructuredOutputsParams`), and
    `begin` are vLLM's arguments for where it begins. `shows_special_tokens`: the answer's text
    includes special tokens. `splitter` separates the reasoning, if marks separate it. `parse` is
    the method of vLLM's parser for this answer, which has read the answer so far. `form` is the
    form of the calls if it is Penstock's own; `answer` then is the text so far, after the
    reasoning. `is_relaxed`: the structure leaves out part of the request's schema.
    """

    structure: Any = None
    begin: dict[str, Any] = field(default_factory=dict)
    shows_special_tokens: bool = False
    splitter: Splitter | None = None
    parse: Parse | None = None
    form: CallForm | None = None
    answer: str = ""
    parallel_calls: bool = True
    is_relaxed: bool = False

    def sink(self, sink: Sink) -> Sink:
        """Return the sink for vLLM's outputs."""
        if self.form is not None:
            sink = CallSink(sink, self.form, self.answer)
        if self.parse is not None:
            sink = ParsingSink(sink, self.parse, parallel_calls=self.parallel_calls)
        return sink if self.splitter is None else SplitSink(sink, self.splitter)


class AnswerReader:
    """Reads an answer with one of vLLM's parsers: `parse` is the function for a `ParsingSink`.

    `parser` is vLLM's, created for this answer, and `chat` the request in its form.
    """

    def __init__(
        self, parser: Any, chat: Any, begun: Begun, marks: tuple[str, str] | None, tokenizer: Any
    ) -> None:
        self._parse = partial(
            parser.parse_delta, request=chat, prompt_token_ids=list(begun.prompt_ids)
        )
        # The parser must not see the marks' tokens: it never gets their text and would wait for it.
        self._marks: list[int] = list(tokenizer.convert_tokens_to_ids(marks)) if marks else []
        self._begun = begun

    def parse(self, text: str, token_ids: list[int], *, finished: bool) -> Parsed | None:
        """Return the parts in the next piece of the answer."""
        ids = [each for each in token_ids if each not in self._marks]
        parsed: Parsed | None = self._parse(text, ids, finished=finished)
        return parsed

    def read_again(self, answer: str) -> Parsed | None:
        """Read the text of the answer so far, without reasoning that marks separate.

        Returns its parts.
        """
        if not answer:
            return None
        ids = list(self._begun.generated)
        if self._marks and (closes := self._marks[1]) in ids:
            ids = ids[len(ids) - ids[::-1].index(closes) :]
        return self.parse(answer, ids, finished=False)


def check_shown(answer: str, parsed: Parsed | None) -> None:
    """Raise CannotContinueError if a parser holds the end of the answer back: a call may begin."""
    if not answer:
        return
    if parsed is not None and not parsed.tool_calls:
        shown = parsed.content or parsed.reasoning
        if shown and answer.rstrip().endswith(shown.rstrip()):
            return
    raise CannotContinueError


def opens_call(answer: str) -> bool:
    """Return whether the answer so far ends with the mark that opens a call in Penstock's form.

    Raises CannotContinueError if it ends behind that mark.
    """
    parser = CallParser()
    parser.push(answer)
    if parser.is_within_call:
        raise CannotContinueError
    return parser.is_open


def text_of(token_ids: list[int], tokenizer: Any, shows_special_tokens: bool) -> str:
    """Return the tokens' text as vLLM decodes it."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=not shows_special_tokens)
    return text
