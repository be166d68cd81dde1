"""What upstreams are asked: the paths, the bodies, and the readers of the answers.

In: a request, what it has got so far, and an upstream's profile. Out: an `Ask`. Not known here:
sockets, failures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.engine.llamacpp.params import completion_body
from penstock.engine.remote.account import Account
from penstock.engine.remote.answers import ChatReader, CompletionReader, LlamaReader, Reader
from penstock.engine.remote.profile import CONTINUES, Profile
from penstock.engine.turns import turn, with_begun_turn
from penstock.request import Request


@dataclass(frozen=True)
class Ask:
    """A question for an answer: where it goes, its body, and how the answer is read."""

    path: str
    body: dict[str, Any]
    reader: Callable[[Account], Reader]

    def encoded(self) -> bytes:
        """Return the body as JSON."""
        return msgspec.json.encode(self.body)


def ask_with_ids(
    profile: Profile,
    request: Request,
    account: Account,
    token_ids: list[int],
    room: int,
    marks: tuple[str, str] | None,
) -> Ask:
    """Return the question that continues the tokens `token_ids` with `room` tokens at most."""
    if profile.kind == "llamacpp":
        body = completion_body(request, token_ids, profile.context_length, marks)
        return Ask("/completion", {**body, "n_predict": room}, LlamaReader)
    sampling = request.sampling
    body = {
        **_common(profile, request, room),
        "prompt": token_ids,
        "top_k": sampling.top_k or (-1 if profile.kind == "vllm" else 0),
        "return_token_ids": True,
    }
    optional = {
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty
        if sampling.repetition_penalty != 1
        else 0,
        "min_tokens": max(0, request.min_tokens - account.num_tokens),
        "ignore_eos": request.ignore_eos,
        "stop_token_ids": list(request.stop_token_ids),
    }
    body |= {name: value for name, value in optional.items() if value}
    body["stream_options"]["continuous_usage_stats"] = True
    if profile.kind == "penstock" and not request.use_cache:
        body["cache_prompt"] = False
    if marks is not None and profile.kind == "vllm":
        body["skip_special_tokens"] = False  # the marks may be special
    return Ask("/v1/completions", body, CompletionReader)


def ask_with_text(profile: Profile, request: Request, account: Account) -> Ask | None:
    """Return the question for a text or a conversation; None if the answer cannot continue there.

    An answer that has begun continues from its text: after the prompt, or as the assistant's turn.
    """
    text = account.text
    body = _common(profile, request, account.num_left)
    if request.messages is None:
        return Ask(
            "/v1/completions", {**body, "prompt": f"{request.prompt}{text}"}, CompletionReader
        )
    if account.has_text and (account.num_calls or account.has_thoughts):
        return None  # no server continues these from their middle
    messages, continues = request.messages, request.continue_last_message
    if account.has_text:
        messages, continues = with_begun_turn(messages, text, continues=continues), True
    if continues and profile.kind not in CONTINUES:
        return None
    body["messages"] = [turn(each, reasoning_as="reasoning_content") for each in messages]
    if continues:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif not request.open_answer:
        body["add_generation_prompt"] = False
    body |= _tools_of(request)
    return Ask("/v1/chat/completions", body, ChatReader)


def chat_fields(request: Request) -> dict[str, Any]:
    """Return the fields of a conversation whose prompt an upstream renders."""
    turns = [turn(each, reasoning_as="reasoning_content") for each in request.messages or ()]
    body: dict[str, Any] = {"messages": turns}
    if request.continue_last_message:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif not request.open_answer:
        body["add_generation_prompt"] = False
    return body | _tools_of(request)


def _tools_of(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if request.tools is not None:
        body["tools"] = msgspec.Raw(request.tools.encode())
        body["tool_choice"] = "required" if request.tool_call_required else "auto"
        if not request.parallel_calls:
            body["parallel_tool_calls"] = False
    if request.template_kwargs is not None:
        body["chat_template_kwargs"] = msgspec.Raw(request.template_kwargs.encode())
    return body


def _common(profile: Profile, request: Request, room: int) -> dict[str, Any]:
    """Return the fields that every server with OpenAI's API takes."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "max_tokens": room,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if profile.model:
        body["model"] = profile.model
    optional = {
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias} or None,
    }
    return body | {name: value for name, value in optional.items() if value is not None}
