"""Generates text from a GGUF file with llama.cpp, as Penstock does, for the samples in the card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xllamacpp

NUM_THREADS = 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. Temperature 0 always takes the most likely token."""

    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 1
    max_tokens: int = 700


@dataclass(frozen=True, slots=True)
class Reply:
    """A generated text with its number of tokens."""

    text: str
    num_tokens: int
    stopped: bool
    """True if the model ended the text by itself, before the token limit."""


class Chatter:
    """A loaded model that answers one request at a time."""

    def __init__(self, model: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = 1024
        params.n_parallel = 1
        params.cpuparams.n_threads = NUM_THREADS
        params.cpuparams_batch.n_threads = NUM_THREADS
        params.warmup = False
        params.verbosity = -1
        self.server = xllamacpp.Server(params)

    def complete(self, prompt: str, sampling: Sampling) -> Reply:
        """Continue a text. llama.cpp puts <|endoftext|> in front of it."""
        body = self._ask(self.server.handle_completions, {"prompt": prompt}, sampling)
        choice = body["choices"][0]
        return _reply(choice["text"], choice, body)

    def chat(self, turns: Sequence[str], sampling: Sampling) -> Reply:
        """Answer the last turn. Turns alternate between the user and the model; the user begins."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        body = self._ask(self.server.handle_chat_completions, {"messages": messages}, sampling)
        choice = body["choices"][0]
        return _reply(choice["message"]["content"], choice, body)

    def _ask(self, handle: Any, request: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
        request |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "seed": sampling.seed,
            "max_tokens": sampling.max_tokens,
        }
        body = handle(request)
        answer = cast("dict[str, Any]", body if isinstance(body, dict) else json.loads(body))
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp refused: {answer}")
        return answer


def _reply(text: str, choice: dict[str, Any], body: dict[str, Any]) -> Reply:
    return Reply(text, body["usage"]["completion_tokens"], choice["finish_reason"] == "stop")
