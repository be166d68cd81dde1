"""Conversations that clients send and that many chat templates refuse or drop."""

from typing import Any


def turn(role: str, content: Any = "A lake.", **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def call(call_id: str = "call_1", arguments: Any = '{"zone": "UTC"}') -> dict[str, Any]:
    function = {"name": "get_time", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


SYSTEM, USER, SAID = turn("system"), turn("user"), turn("assistant")
ASKED = turn("assistant", None, tool_calls=[call()])
RESULT = turn("tool", "It is noon.", tool_call_id="call_1")
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "two users": [USER, USER],
    "user, assistant, assistant": [USER, SAID, SAID],
    "begins with assistant": [SAID, USER],
    "only assistant": [SAID],
    "only system": [SYSTEM],
    "system first": [SYSTEM, USER],
    "a second system": [SYSTEM, SYSTEM, USER],
    "a late system": [SYSTEM, USER, SAID, SYSTEM, USER],
    "system last": [USER, SAID, SYSTEM],
    "developer": [turn("developer"), USER],
    "no content": [turn("user", None), turn("assistant", ""), {"role": "user"}],
    "an empty answer": [USER, turn("assistant", "")],
    "a tool's result": [USER, ASKED, RESULT],
    "a user after a result": [USER, ASKED, RESULT, USER],
    "an answer after a result": [USER, ASKED, RESULT, SAID, USER],
    "a result without a call": [USER, turn("tool", "5", tool_call_id="gone")],
    "a call without a result": [USER, ASKED, USER],
    "ends with a call": [USER, ASKED],
    "function": [
        USER,
        turn("assistant", None, function_call=call()["function"]),
        turn("function", "It is noon.", name="get_time"),
    ],
    "a cut call": [USER, turn("assistant", None, tool_calls=[call(arguments='{"zo')]), RESULT],
    "an object": [USER, turn("assistant", None, tool_calls=[call(arguments={"a": 1})]), RESULT],
    "a long id": [
        USER,
        turn("assistant", None, tool_calls=[call("c" * 999)]),
        turn("tool", {"time": 12}, tool_call_id="c" * 999),
    ],
    "names": [
        turn("system", name="Host"),
        turn("user", name="user"),
        turn("assistant", name="a"),
        turn("user", name="user"),
    ],
    "parts": [turn("user", [{"type": "input_text", "text": "A"}, {"type": "text", "text": "B"}])],
}
