"""The structural tag of Penstock's own form of calls has the language that `engine.tools` reads."""

import json
from typing import Any

import pytest
import xgrammar

from penstock.engine.tools import MAX_CALLS, CallForm
from penstock.engine.vllm.tags import tag_of
from tests.support.calling import BOTH

CALL = '\n{"name": "get_time", "arguments": {"zone":"UTC"}}\n</tool_call>'
AGAIN = f"\n<tool_call>{CALL}"
SCHEMA = '{"type": "object", "properties": {"lake": {"enum": ["Como"]}}, "required": ["lake"]}'


def is_whole(tag: str, text: str) -> bool | None:
    """Return whether the text is a whole answer, None if it is not even the beginning of one."""
    vocabulary = xgrammar.TokenizerInfo([chr(n) for n in range(128)], stop_token_ids=[0])
    compiled = xgrammar.GrammarCompiler(vocabulary).compile_structural_tag(tag)
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return matcher.is_completed() if matcher.accept_string(text) else None


CASES: list[tuple[dict[str, Any], dict[str, Any], str, bool | None]] = [
    ({}, {}, "", True),
    ({}, {}, "It is late.", True),
    ({}, {}, "<tool_ is a word.", True),
    ({}, {}, "<tool_call>", False),
    ({}, {}, "<tool_call>\n{}", None),
    ({}, {}, f"Well. <tool_call>{CALL}", True),
    ({}, {}, f"<tool_call>{CALL}{AGAIN}", True),
    ({}, {}, f"<tool_call>{CALL}{AGAIN * (MAX_CALLS - 1)}", True),
    ({}, {}, f"<tool_call>{CALL}{AGAIN * MAX_CALLS}", None),
    ({}, {}, f"<tool_call>{CALL} and more", None),
    ({}, {}, f"<tool_call>{CALL.replace('UTC', 'XYZ')}", None),
    ({}, {}, f"<tool_call>{CALL.replace('get_time', 'get_lost')}", None),
    ({"parallel": False}, {}, f"<tool_call>{CALL}", True),
    ({"parallel": False}, {}, f"<tool_call>{CALL}{AGAIN}", None),
    ({"must_call": True}, {}, "", False),
    ({"must_call": True}, {}, "It", None),
    ({"must_call": True}, {}, f"<tool_call>{CALL}", True),
    ({"schema": SCHEMA}, {}, '{"lake": "Como"}', True),
    ({"schema": SCHEMA}, {}, '{"lake":', False),
    ({"schema": SCHEMA}, {}, f"<tool_call>{CALL}", True),
    ({"schema": SCHEMA}, {}, "It is late.", None),
    ({"schema": SCHEMA, "must_call": True}, {}, '{"lake": "Como"}', None),
    ({}, {"is_open": True}, CALL, True),
    ({}, {"is_open": True}, "It is late.", None),
    ({"must_call": True}, {"ends_thought": "</think>"}, "Hm. <tool_call>", False),
    ({"must_call": True}, {"ends_thought": "</think>"}, f"Hm.</think>\n\n<tool_call>{CALL}", True),
    ({"must_call": True}, {"ends_thought": "</think>"}, "Hm.</think>\n\nIt", None),
    ({}, {"ends_thought": "</think>"}, "Hm.</think>\n\nIt is late.", True),
]


@pytest.mark.parametrize(("form", "begun", "text", "expected"), CASES, ids=str)
def test_an_answer_has_the_form(
    form: dict[str, Any], begun: dict[str, Any], text: str, expected: bool | None
) -> None:
    form = {"must_call": False, "parallel": True, **form}
    assert is_whole(tag_of(CallForm(json.dumps(BOTH), **form), **begun), text) is expected
