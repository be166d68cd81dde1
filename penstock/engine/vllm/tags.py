"""Penstock's own form of tool calls as a structural tag, which xgrammar enforces.

In: a `CallForm`. Out: the tag as JSON. The same language as a grammar in Lark's form is
`CallForm.lark`. Does not import vLLM.

Structural tags: https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html
"""

import json
from typing import Any

from penstock.engine.tools import MAX_CALLS, CallForm
from penstock.engine.turns import CLOSING, OPENING

Format = dict[str, Any]

MAX_WHITE_SPACE = 1


def tag_of(form: CallForm, *, ends_thought: str = "", is_open: bool = False) -> str:
    """Return the structural tag of an answer.

    `ends_thought` is the mark that ends the reasoning, if the model still reasons. `is_open`: the
    answer so far ends with the mark that opens a call.
    """
    answer = _answer(form, is_open=is_open)
    if ends_thought:
        thought = {"type": "tag", "begin": "", "content": {"type": "any_text"}, "end": ends_thought}
        answer = _sequence(thought, {"type": "regex", "pattern": "[ \\n]{0,4}"}, answer)
    return json.dumps(with_little_space({"type": "structural_tag", "format": answer}))


def with_little_space(tag: Any) -> Any:
    """Return the structural tag with at most one white space at each place in its JSON.

    A small model would generate white space without end.
    """
    if isinstance(tag, list):
        return [with_little_space(each) for each in tag]
    if not isinstance(tag, dict):
        return tag
    if tag.get("type") == "json_schema" and tag.get("style", "json") == "json":
        return {**tag, "max_whitespace_cnt": MAX_WHITE_SPACE}
    return {name: with_little_space(each) for name, each in tag.items()}


def _answer(form: CallForm, *, is_open: bool) -> Format:
    calls = _calls(form)
    if is_open:
        return calls
    if form.must_call:
        return _sequence(_text(OPENING), calls)
    if form.schema is not None:
        return _choice(_sequence(_text(OPENING), calls), _json(json.loads(form.schema)))
    return {"type": "dispatch", "rules": [[OPENING, calls]], "loop": False}


def _calls(form: CallForm) -> Format:
    """Return the form of what follows the mark that opens the first call."""
    functions = [tool["function"] for tool in json.loads(form.tools)]
    one = _sequence(_text("\n"), _choice(*map(_call, functions)), _text(f"\n{CLOSING}"))
    if not form.parallel:
        return one
    another = _sequence(_text(f"\n{OPENING}"), one)
    return _sequence(one, {"type": "repeat", "min": 0, "max": MAX_CALLS - 1, "content": another})


def _call(function: dict[str, Any]) -> Format:
    name = json.dumps(function["name"], ensure_ascii=False)
    head = _text(f'{{"name": {name}, "arguments": ')
    return _sequence(head, _json(function["parameters"]), _text("}"))


def _text(text: str) -> Format:
    return {"type": "const_string", "value": text}


def _json(schema: Any) -> Format:
    return {"type": "json_schema", "json_schema": schema}


def _sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}


def _choice(*elements: Format) -> Format:
    return {"type": "or", "elements": list(elements)}
