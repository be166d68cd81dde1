"""Requests as Claude Code sends them: claude_code.json is the body of its 2.1.197.

It was recorded with `claude -p "Say hello"` and `ANTHROPIC_BASE_URL`. Its texts are shortened, and
ids are replaced; everything else is as it was sent.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.anthropic_wire import COUNT_TOKENS, MESSAGES, events_of, types_of
from tests.support.long_context import long_rill
from tests.support.raw import Response, ask, post
from tests.support.servers import RunningServer, serve

RECORDED: dict[str, Any] = json.loads(
    Path(__file__).with_name("claude_code.json").read_text(encoding="utf-8")
)
HEADERS = (
    "anthropic-version: 2023-06-01",
    "anthropic-beta: claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "x-api-key: sk-ant-none",
)
IGNORED = {
    "metadata",
    "context_management",
    "model",
    "output_config.effort",
    "messages[].content[].cache_control",
    "system[].cache_control",
    "system[].x-anthropic-billing-header",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    model = long_rill(tmp_path_factory.mktemp("model"), 16_384)
    with serve(model=model, context=16_384, slots=1) as running:
        yield running


# A long prompt takes the built-in model seconds, so only a count shows all 24 tools.
FEW = [tool for tool in RECORDED["tools"] if tool["name"] in ("Edit", "ScheduleWakeup")]


def sent(server: RunningServer, path: str = f"{MESSAGES}?beta=true", **fields: Any) -> Response:
    body = {**RECORDED, "tools": FEW, "max_tokens": 20, "temperature": 0, **fields}
    return ask(server.port, post(json.dumps(body).encode(), *HEADERS, path=path))


def names_in(answer: Response) -> set[str]:
    return set(answer.headers["x-penstock-ignored"].split(", "))


def billed(cch: str) -> list[dict[str, Any]]:
    """Return the system prompt with another billing line."""
    (first, *rest) = RECORDED["system"]
    assert first["text"].startswith("x-anthropic-billing-header: ")
    return [{**first, "text": f"{first['text']} cch={cch};"}, *rest]


def test_claude_code_s_request_is_answered_and_what_is_left_out_is_named(
    server: RunningServer,
) -> None:
    assert requests.head(server.url, timeout=30).status_code == 200
    answer = sent(server)
    assert answer.status == 200
    assert names_in(answer) == IGNORED
    assert types_of(answer.body)[-2:] == ["message_delta", "message_stop"]
    assert events_of(answer.body)[0]["message"]["model"] == RECORDED["model"]
    usage = events_of(answer.body)[-2]["usage"]
    count = sent(server, COUNT_TOKENS).json()["input_tokens"]
    assert count == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_all_of_claude_code_s_tools_can_be_shown_and_bound(server: RunningServer) -> None:
    answer = sent(server, COUNT_TOKENS, tools=RECORDED["tools"])
    assert "tools[].parameters (relaxed)" in names_in(answer)
    assert answer.json()["input_tokens"] > 3000


def test_the_next_turn_finds_nearly_all_of_its_prompt_in_the_cache(server: RunningServer) -> None:
    sent(server, system=billed("a1b2c"))
    turns = [
        *RECORDED["messages"],
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
    ]
    usage = events_of(sent(server, system=billed("ff00e"), messages=turns).body)[-2]["usage"]
    total = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert usage["cache_read_input_tokens"] > 0.9 * total > 500


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(server: RunningServer) -> None:
    long = [{"role": "user", "content": "hello " * 20_000}]
    answer = sent(server, messages=long)
    assert answer.status == 400
    assert "prompt is too long: " in answer.json()["error"]["message"]
    assert " tokens > 16384 maximum" in answer.json()["error"]["message"]
