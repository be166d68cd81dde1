"""Bodies of every API that use most of its fields, for tests that put one more field into them."""

from typing import Any

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
FUNCTION = {"name": "look", "description": "Look it up.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
HELLO = {"role": "user", "content": "Hello"}


def text(words: str, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": words}


CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CUSTOM_CALL = {"id": "d", "type": "custom", "custom": {"name": "look", "input": "a"}}
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "developer", "content": [text("Be kind.")]},
    {"role": "user", "content": [text("Look.")]},
    {"role": "assistant", "content": [text("I look.")], "tool_calls": [CALL, CUSTOM_CALL]},
    {"role": "tool", "tool_call_id": "c", "content": [text("It is there.")]},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "So."}, text("There.")]},
    HELLO,
]
NAMED = {"type": "function", "function": {"name": "look"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
CHATS: list[dict[str, Any]] = [
    {
        "messages": TURNS,
        "stream": True,
        "stream_options": {},
        "tools": [TOOL],
        "tool_choice": NAMED,
    },
    {"messages": [HELLO], "tools": [TOOL], "tool_choice": ALLOWED},
    {
        "messages": [
            HELLO,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "look", "content": "It is there."},
        ],
        "functions": [FUNCTION],
        "function_call": {"name": "look"},
    },
    {
        "messages": [HELLO],
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}},
    },
    {"messages": [HELLO], "response_format": {"type": "text"}},
    {"messages": [HELLO], "structured_outputs": {"regex": "a"}},
]
ITEMS = [
    {"type": "message", "role": "user", "content": [text("Look.", "input_text")]},
    {
        "type": "reasoning",
        "summary": [text("So.", "summary_text")],
        "content": [text("So.", "reasoning_text")],
    },
    {"type": "message", "role": "assistant", "content": [text("I look.", "output_text")]},
    {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "It is there."},
    {"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "a"},
    {
        "type": "custom_tool_call_output",
        "call_id": "d",
        "output": [text("Done.", "input_text")],
    },
]
CUSTOM_TOOL = {
    "type": "custom",
    "name": "patch",
    "format": {"type": "grammar", "syntax": "regex", "definition": "a"},
}
RESPONSES: list[dict[str, Any]] = [
    {
        "input": ITEMS,
        "stream": True,
        "stream_options": {},
        "tools": [
            {"type": "function", **FUNCTION},
            CUSTOM_TOOL,
            {"type": "namespace", "name": "files", "tools": [{"type": "function", **FUNCTION}]},
        ],
        "reasoning": {},
    },
    {
        "input": "Hello",
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {"type": "function", "name": "look"},
    },
    {
        "input": "Hello",
        "text": {"format": {"type": "json_schema", "name": "it", "schema": SCHEMA}},
    },
]
BLOCKS: dict[str, Any] = {
    "system": [text("Be short.")],
    "messages": [
        {
            "role": "user",
            "content": [
                text("Look."),
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "It is there."},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "So.", "signature": "a"},
                text("I look."),
                {"type": "tool_use", "id": "c", "name": "look", "input": {"q": "a"}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c", "content": [text("There.")]}],
        },
        HELLO,
    ],
    "tools": [{"name": "look", "description": "Look it up.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "adaptive"},
    "output_config": {},
}
MESSAGES: list[dict[str, Any]] = [
    {**BLOCKS, "max_tokens": 9, "stream": True},
    {"messages": [HELLO], "max_tokens": 9, "output_config": {}},
    {"messages": [HELLO], "max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 7}},
    {
        "messages": [HELLO],
        "max_tokens": 9,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
]
OLLAMA_CALL = {"function": {"name": "look", "arguments": {"q": "a"}}}
OLLAMA_CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "I look.", "tool_calls": [OLLAMA_CALL]},
        {"role": "tool", "content": "It is there."},
        HELLO,
    ],
    "tools": [TOOL],
    "options": {},
}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/generate": [{"prompt": "Once", "stream": True}, {"messages": [HELLO]}],
    "/v1/completions": [{"prompt": "Once", "stream": True, "stream_options": {}}],
    "/v1/chat/completions": CHATS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": [BLOCKS],
    "/api/chat": [OLLAMA_CHAT, {"messages": [HELLO], "format": SCHEMA}],
    "/api/generate": [{"prompt": "Once", "options": {}}, {"prompt": "Once", "raw": True}],
    "/tokenize": [{"content": "Once"}, {"prompt": "Once"}, {"messages": [HELLO]}],
    "/detokenize": [{"tokens": [1]}],
    "/apply-template": [{"messages": [HELLO]}],
    "/completion": [{"prompt": "Once", "stream": True}],
    "/infill": [{"input_prefix": "a", "input_suffix": "b", "input_extra": [{"text": "a"}]}],
}
"""Bodies for each route that reads a prompt."""
