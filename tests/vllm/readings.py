"""Reads scripted answers with vLLM's parsers: one line of JSON on standard input for each answer.

`python -m tests.vllm.readings MODEL` reads all in one process, because importing vLLM takes ten
seconds. A line contains the names of the parsers for calls and for reasoning, the tools or null,
whether a call is required, the text after a prompt that opens the reasoning, the number of tokens
per step, and the number of tokens after which the engine dies, or null.
"""

import functools
import json
import sys
from typing import Any

from penstock.engine.vllm.formats import Begun
from penstock.request import Request
from tests.support.recording import RecordingSink

PROMPT = "<|assistant|><think>\n"


def main() -> None:
    """Write a line [reasoning, answer, [[function, arguments]...]] for each answer."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # vLLM may write to standard output
    for line in sys.stdin:
        sink = reading_of(*json.loads(line))
        calls = [
            [name, "".join(part[3] for part in sink.tool_parts if part[0] == number)]
            for number, call_id, name, _ in sink.tool_parts
            if call_id
        ]
        print(json.dumps(["".join(sink.thoughts), sink.text(), calls]), file=answers)


def reading_of(
    tool_parser: str,
    reasoning_parser: str,
    tools: Any,
    must_call: bool,
    text: str,
    step: int,
    death: int | None,
) -> RecordingSink:
    """Read one answer and return its recorded sink, after checking that every token counts once."""
    chats = chats_of(tool_parser, reasoning_parser)
    request = Request(
        id="",
        max_tokens=1,
        messages=(),
        tools=None if tools is None else json.dumps(tools),
        tool_call_required=must_call,
        separate_reasoning=True,
    )
    prompt_ids, ids = (
        chats.tokenizer.encode(each, add_special_tokens=False) for each in (PROMPT, text)
    )
    told = RecordingSink()
    sink = chats.answer_format(request, Begun(tuple(prompt_ids))).sink(told)
    num_with_text = 0
    start = 0
    while start < len(ids):
        if start == death:
            # Tokens that came without text are generated again, as in a stream.
            death, start = None, num_with_text
            generated = ids[:num_with_text]
            del told.token_ids[num_with_text:]
            told.num_tokens = num_with_text
            begun = Begun(tuple(prompt_ids), tuple(generated))
            sink = chats.answer_format(request, begun).sink(told)
        part = ids[start : start + step]
        before = told.text() + "".join(told.thoughts)
        sink.delta(chats.tokenizer.decode(part), len(part), tuple(part))
        start += len(part)
        if told.text() + "".join(told.thoughts) != before:
            num_with_text = start
    sink.finish("stop", len(ids))
    assert told.num_tokens == len(ids)
    return told


@functools.cache
def chats_of(tool_parser: str, reasoning_parser: str) -> Any:
    """Return the model's `Chats` with these parsers."""
    from penstock.engine.vllm.chats import Chats
    from penstock.engine.vllm.engine import configure

    engine_args = {"model": sys.argv[1], "reasoning_parser": reasoning_parser}
    _, config = configure(engine_args, tool_parser)
    return Chats(config, tool_parser)


if __name__ == "__main__":
    main()
