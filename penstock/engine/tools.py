"""A form of tool calls for models whose chat template has none, and for calls that must be made.

In: the tools of a request. Out: the text that tells the model about them, the grammar that binds
its calls, and a sink that finds the calls in the answer. A call is JSON between two marks, which
many models have learned:

    <tool_call>
    {"name": "get_weather", "arguments": {"city":"Bonn"}}
    </tool_call>

Not known here: the engine. The grammar is in llguidance's form of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md); over vLLM, `vllm.tags` has the
same language in xgrammar's form.
"""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Literal

import msgspec

from penstock.engine.grammar import is_json
from penstock.engine.protocol import EngineFinish, Sink
from penstock.engine.reasoning import FilterSink
from penstock.engine.turns import CLOSING, OPENING
from penstock.events import TokenLogprob
from penstock.request import Message

MAX_CALLS = 32  # a small model may repeat one without end
LOST = "The engine stopped enforcing the form of tool calls. Simplify the tools' parameters."

_INSTRUCTIONS = """\
You can call functions. These are the functions, as JSON:
<tools>
{tools}
</tools>
To call a function, write its name and its arguments as JSON between two marks:
<tool_call>
{{"name": "the function's name", "arguments": {{"parameter": "value"}}}}
</tool_call>
{when}"""
_WHEN_AUTO = "Call a function only if you need it. Otherwise answer in words."
_WHEN_REQUIRED = "You must call a function now."

# The end of a text that may go on as the mark that opens a call, with the white space before it.
_MAY_OPEN = re.compile(
    rf"(?:\s+|\s*(?:{'|'.join(re.escape(OPENING[:n]) for n in range(len(OPENING) - 1, 0, -1))}))\Z"
)
_HEAD = re.compile(r'\s*\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
_OF_JSON = re.compile(r'[{}"\\]')


def with_instructions(
    messages: tuple[Message, ...], tools: str, *, must_call: bool
) -> tuple[Message, ...]:
    """Return the conversation with a system turn that tells the model about the tools."""
    functions = [json.dumps(tool["function"], ensure_ascii=False) for tool in json.loads(tools)]
    text = _INSTRUCTIONS.format(
        tools="\n".join(functions), when=_WHEN_REQUIRED if must_call else _WHEN_AUTO
    )
    if messages and messages[0].role == "system":
        first = msgspec.structs.replace(messages[0], content=f"{messages[0].content}\n\n{text}")
        return (first, *messages[1:])
    return (Message("system", text), *messages)


class CallForm(msgspec.Struct, frozen=True):
    """The form of an answer with tool calls.

    `tools` is a JSON list with parameters that llguidance binds. With `must_call` the answer has
    a call, otherwise it is text, or text and calls. `parallel`: there may be several calls.
    `schema` is a JSON schema that an answer without calls must satisfy, instead of any text.
    """

    tools: str
    must_call: bool
    parallel: bool
    schema: str | None = None

    def lark(self, *, ends_thought: str = "", is_open: bool = False) -> str:
        """Return the grammar of the answer.

        `ends_thought` is the mark that ends the reasoning, if the model still reasons. `is_open`:
        the answer so far ends with the mark that opens a call.
        """
        rules = []
        names = []
        for number, tool in enumerate(json.loads(self.tools)):
            function = tool["function"]
            name = json.dumps(function["name"], ensure_ascii=False)
            head = _literal(f'{{"name": {name}, "arguments": ')
            rules.append(f'call_{number}: {head} %json {json.dumps(function["parameters"])} "}}"')
            names.append(f"call_{number}")
        one = f"{_literal(chr(10))} call {_literal(chr(10) + CLOSING)}"
        more = (
            f" ({_literal(chr(10) + OPENING)} {one}){{0,{MAX_CALLS - 1}}}" if self.parallel else ""
        )
        rules += [f"call: {' | '.join(names)}", f"calls: {one}{more}"]
        if is_open:
            answer = "calls"
        elif self.must_call:
            answer = f"{_literal(OPENING)} calls"
        elif self.schema is not None:
            answer = f"{_literal(OPENING)} calls | %json {self.schema}"
        else:
            answer = "TEXT | opened calls"
            rules.append(f"opened[suffix={_literal(OPENING)}]: /(?s:.*)/")
            rules.append(f"TEXT: /(?s:.*)/ & ~/(?s:.*){OPENING}(?s:.*)/")
        rules.append(f"answer: {answer}")
        if ends_thought:
            rules.append(f"thought[suffix={_literal(ends_thought)}]: /(?s:.*)/")
            rules.append("start: thought /[ \\n]{0,4}/ answer")
        else:
            rules.append("start: answer")
        return "\n".join(("%llguidance {}", *rules))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


Part = tuple[Literal["text", "name", "arguments"], str]


class CallParser:
    """Finds tool calls in the text of an answer, which comes in pieces.

    With `has_schema` an answer without calls follows a schema: it is only text, also if the text
    contains the mark that opens a call. An answer with calls then begins with the mark.
    """

    def __init__(self, *, has_schema: bool = False) -> None:
        self.num_calls = 0
        self._state: Literal["begin", "said", "text", "opened", "arguments", "closed"]
        self._state = "begin" if has_schema else "text"
        self._held = ""
        self._depth = 0
        self._in_string = False

    @property
    def is_open(self) -> bool:
        """True after the mark that opens a call, as long as no tool is named."""
        return self._state == "opened"

    @property
    def is_within_call(self) -> bool:
        """True after the mark that opens a call and more text, until the call ends."""
        return self._state == "arguments" or (self.is_open and bool(self._held))

    @property
    def is_complete(self) -> bool:
        """True if the answer may end here."""
        return self._state in ("text", "closed")

    def push(self, piece: str) -> list[Part]:
        """Add text and return the parts that are certain now, none of them empty.

        Text that may go on as a mark is held back together with the rest of its piece.
        """
        self._held += piece
        return [part for part in self._parts() if part[1]]

    def flush(self) -> list[Part]:
        """Return the text that was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return [("text", held)] if self._state == "text" and held else []

    def _parts(self) -> Iterator[Part]:
        while True:
            state = self._state
            if state == "begin":
                self._begin()
            elif state == "said":
                text, self._held = self._held, ""
                yield "text", text
            elif state == "text":
                yield from self._text()
            elif state == "opened":
                if (head := _HEAD.match(self._held)) is not None:
                    self._held = self._held[head.end() :]
                    self._state, self.num_calls = "arguments", self.num_calls + 1
                    yield "name", json.loads(head[1])
            elif state == "arguments":
                yield "arguments", self._arguments()
            elif OPENING in self._held:
                self._held = self._held.partition(OPENING)[2]
                self._state = "opened"
            if self._state == state:
                return

    def _begin(self) -> None:
        """Find out whether the answer calls."""
        begun = self._held.lstrip()
        if begun.startswith(OPENING):
            self._held, self._state = begun.removeprefix(OPENING), "opened"
        elif not OPENING.startswith(begun):
            self._state = "said"

    def _text(self) -> Iterator[Part]:
        text, mark, rest = self._held.partition(OPENING)
        if mark:
            self._held, self._state = rest, "opened"
            yield "text", text.rstrip()
        elif not _MAY_OPEN.search(text):
            self._held = ""
            yield "text", text

    def _arguments(self) -> str:
        """Return the next part of a call's arguments, which end with their outermost brace."""
        held, is_escaped_at = self._held, -1
        for found in _OF_JSON.finditer(held):
            mark, at = found[0], found.start()
            if at == is_escaped_at:
                continue
            if self._in_string:
                if mark == "\\":
                    if at + 1 == len(held):  # the character that it escapes has not come
                        self._held = held[at:]
                        return held[:at]
                    is_escaped_at = at + 1
                elif mark == '"':
                    self._in_string = False
            elif mark == '"':
                self._in_string = True
            elif mark in "{}":
                self._depth += 1 if mark == "{" else -1
                if not self._depth:
                    self._held, self._state = held[at + 1 :], "closed"
                    return held[: at + 1]
        self._held = ""
        return held


class CallSink(FilterSink):
    """A sink that finds tool calls in an engine's text and passes them on as calls.

    An answer that ends by itself fails if it does not have the form.
    """

    def __init__(self, sink: Sink, form: CallForm, answer: str) -> None:
        """`answer` is the text of the answer so far, if the answer is continued."""
        super().__init__(sink)
        self._form = form
        self.parser = CallParser(has_schema=form.schema is not None)
        self.parser.push(answer)
        self._number = self.parser.num_calls - 1
        self._text = answer

    def delta(
        self,
        piece: str | bytes,
        num_tokens: int,
        token_ids: tuple[int, ...],
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Pass on the text and the calls that are certain."""
        assert isinstance(piece, str)
        if self._form.schema is not None:
            self._text += piece
        parts = self.parser.push(piece)
        if not parts:
            self._sink.delta("", num_tokens, token_ids)
        for number, (kind, text) in enumerate(parts, 1):
            # If a piece has several parts, its tokens count for the last.
            tokens = (num_tokens, token_ids) if number == len(parts) else (0, ())
            self._push(kind, text, *tokens)

    def finish(self, reason: EngineFinish, completion_tokens: int) -> None:
        """Pass on the text that was held back, then the end."""
        if reason == "stop" and not self._has_form:
            self._sink.fail("schema_lost", LOST)
            return
        if not self._form.must_call:  # otherwise the text was the mark that opens the call
            for kind, text in self.parser.flush():
                self._push(kind, text, 0, ())
        self._sink.finish(reason, completion_tokens)

    @property
    def _has_form(self) -> bool:
        if not self.parser.num_calls:
            if self._form.must_call:
                return False
            if self._form.schema is not None:
                return is_json(self._text)
        return self.parser.is_complete

    def _push(self, kind: str, text: str, num_tokens: int, token_ids: tuple[int, ...]) -> None:
        if kind == "text":
            self._sink.delta(text, num_tokens, token_ids)
        elif kind == "name":
            self._number += 1
            call_id = f"call_{secrets.token_hex(12)}"
            self._sink.tool_call(self._number, call_id, text, "", num_tokens)
        else:
            self._sink.tool_call(self._number, "", "", text, num_tokens)
