"""Makes the requests to upstreams: their paths, their bodies, and the readers of the answers.

In: a request, what it has got so far, and an upstream's profile. Out: an `Ask`. Not known here:
sockets, failures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.engine.llamacpp.params import completion_body, sampling_params
from penstock.engine.remote.account import Account
from penstock.engine.remote.answers import ChatReader, CompletionReader, LlamaReader, Reader
from penstock.engine.remote.binding import Bound
from penstock.engine.remote.bonds import bond_fields, logprobs_fields
from penstock.engine.remote.profile import CONTINUES, CONTINUES_PROMPTS, Kind, Level, Profile
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
    bound: Bound,
) -> Ask:
    """Return the question that continues the tokens `token_ids` with `room` tokens at most."""
    path = path_of(profile.kind, request, has_ids=True)
    if profile.kind == "llamacpp":
        body = completion_body(request, token_ids, profile.context_length, marks)
        body |= {"n_predict": room, **bond_fields(profile.kind, request, bound)}
        if request.top_logprobs is not None:
            body["n_probs"] = max(1, request.top_logprobs)
        return Ask(path, body, LlamaReader)
    body = {
        **_common(profile, request, room),
        **_own_fields(profile, request, account),
        **bond_fields(profile.kind, request, bound),
        **logprobs_fields(request, is_chat=False),
        "prompt": token_ids,
        "return_token_ids": True,
    }
    body["stream_options"]["continuous_usage_stats"] = True
    if profile.kind == "sglang" and request.prompt_ids:
        # SGLang dies of a token in a prompt that its model does not have. But it refuses a bias on
        # such a token.
        body["logit_bias"] = {str(max(request.prompt_ids)): 0.0} | body.get("logit_bias", {})
    if marks is not None and profile.kind == "vllm":
        body["skip_special_tokens"] = False  # the marks may be special
    return Ask(path, body, CompletionReader)


def ask_with_text(
    profile: Profile, request: Request, account: Account, level: Level, bound: Bound
) -> Ask | None:
    """Return the question for a text or a conversation; None if the answer cannot continue there.

    An answer that has begun continues from its text: after the prompt, or as the assistant's turn.
    At the `level` "ids" the upstream also gets what only servers with token ids are known to take.
    """
    text = account.text
    body = _common(profile, request, account.num_left)
    if level == "ids":
        body |= _own_fields(profile, request, account)
    body |= bond_fields(profile.kind, request, bound)
    body |= logprobs_fields(request, is_chat=request.messages is not None)
    path = path_of(profile.kind, request, has_ids=False)
    if request.messages is None:
        if account.has_text and profile.kind not in CONTINUES_PROMPTS:
            return None
        return Ask(path, {**body, "prompt": f"{request.prompt}{text}"}, CompletionReader)
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
    return Ask(path, body, ChatReader)


def path_of(kind: Kind, request: Request, *, has_ids: bool) -> str:
    """Return the route that answers a request, at an upstream of this kind."""
    if has_ids:
        return "/completion" if kind == "llamacpp" else "/v1/completions"
    return "/v1/completions" if request.messages is None else "/v1/chat/completions"


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


def _own_fields(profile: Profile, request: Request, account: Account) -> dict[str, Any]:
    """Return the fields that OpenAI does not have, as vLLM, llama.cpp and Penstock name them."""
    sampling = request.sampling
    if profile.kind == "llamacpp":
        body = sampling_params(sampling, profile.context_length)
        body.pop("logit_bias", None)  # OpenAI's form is among the other fields
        return {**body, "ignore_eos": request.ignore_eos, "cache_prompt": request.use_cache}
    penalty = sampling.repetition_penalty
    optional = {
        "top_k": sampling.top_k or (-1 if profile.kind in ("vllm", "sglang") else 0),
        "min_p": sampling.min_p or None,
        "repetition_penalty": None if penalty == 1 else penalty,
        "min_tokens": max(0, request.min_tokens - account.num_tokens) or None,
        "ignore_eos": request.ignore_eos or None,
        "stop_token_ids": list(request.stop_token_ids) or None,
        "cache_prompt": None if request.use_cache or profile.kind != "penstock" else False,
    }
    return {name: value for name, value in optional.items() if value is not None}


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
