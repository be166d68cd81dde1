"""Send recorded turns to llama.cpp, and see how much of each prompt comes from its cache.

In: the bodies of requests in the forms of Messages, Responses and chats, and their addresses. Out:
for each turn the tokens of its prompt, and how many of them the engine had in its cache, by its own
count.
"""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.support.servers import RunningServer

LEAST_CACHED = 0.9
"""At least this part of each prompt, from the second turn on, has to come from the cache."""
ANSWER_TOKENS = 8
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Turn:
    """How a recorded turn was answered."""

    conversation: str
    prompt_tokens: int
    cached_tokens: int

    @property
    def cached(self) -> float:
        """Return the part of the prompt that came from the cache."""
        return self.cached_tokens / self.prompt_tokens


def replay(
    server: RunningServer, turns: list[tuple[str, str, dict[str, Any]]], key: str = "none"
) -> list[Turn]:
    """Send turns one after the other: each has a conversation's name, an address and a body."""
    headers = {"Authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
    answered = []
    with httpx.Client(base_url=server.url, headers=headers, timeout=TIMEOUT_S) as client:
        for conversation, path, body in turns:
            answer = client.post(path, json=shortened(path, body))
            assert answer.status_code == 200, (conversation, answer.status_code, answer.text)
            answered.append(Turn(conversation, *tokens_of(answer.json()["usage"])))
    return answered


def shortened(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body with a short, whole answer; the prompt stays the same."""
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens", "stream_options")
    kept = {name: value for name, value in body.items() if name not in limits}
    limit = "max_output_tokens" if path.startswith("/v1/responses") else "max_tokens"
    return {**kept, limit: ANSWER_TOKENS, "stream": False}


def tokens_of(usage: dict[str, Any]) -> tuple[int, int]:
    """Return the tokens of a prompt, and those from the cache, in any API's form of usage."""
    if "cache_read_input_tokens" in usage:  # Messages: its input_tokens leave them out
        cached = usage["cache_read_input_tokens"]
        return usage["input_tokens"] + cached, cached
    if "input_tokens" in usage:  # Responses
        return usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def too_little_cached(turns: list[Turn]) -> list[str]:
    """Return a sentence for each turn, from a conversation's second on, with too little cached."""
    seen: set[str] = set()
    sentences = []
    for number, turn in enumerate(turns):
        if turn.conversation in seen and turn.cached <= LEAST_CACHED:
            sentences.append(
                f"Turn {number} ({turn.conversation}): {turn.cached_tokens} of"
                f" {turn.prompt_tokens} tokens came from the cache."
            )
        seen.add(turn.conversation)
    return sentences
