"""The bodies of requests to llama.cpp's server.

In: requests, and where their answers go on. Out: the fields that llama.cpp knows. Not known here:
which slot answers, and how many tokens have room.
"""

from typing import Any

import msgspec

from penstock.engine.turns import turn, with_begun_turn
from penstock.request import Request, Sampling, UnnamedTokens

# llama.cpp draws a seed if it gets this number.
RANDOM_SEED = 0xFFFFFFFF


def sampling_params(sampling: Sampling, context_length: int) -> dict[str, Any]:
    """Return llama.cpp's sampling parameters, with none left to llama.cpp's own defaults."""
    params: dict[str, Any] = {
        "samplers": ["top_k", "top_p", "temperature"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": RANDOM_SEED if sampling.seed is None else sampling.seed % RANDOM_SEED,
    }
    if sampling.min_p:
        params["samplers"] = ["top_k", "top_p", "min_p", "temperature"]
        params["min_p"] = sampling.min_p
    penalties = sampling.presence_penalty, sampling.frequency_penalty
    if any(penalties) or sampling.repetition_penalty != 1:
        # Penalties cover the whole context, prompt and answer alike. So a continuation, whose
        # prompt includes the answer so far, goes on exactly.
        params |= {
            "samplers": ["penalties", *params["samplers"]],
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": context_length,
        }
    if sampling.logit_bias:
        params["logit_bias"] = sampling.logit_bias
    return params


def completion_body(
    request: Request, token_ids: list[int], context_length: int, marks: tuple[str, str] | None
) -> dict[str, Any]:
    """Return the fields of a request to `/completion` that goes on after these tokens.

    `marks` surround the reasoning, if they must stay in the text. The number of tokens and what
    binds the answer are not among the fields.
    """
    body: dict[str, Any] = {
        "prompt": token_ids,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,
        "ignore_eos": request.ignore_eos,
        **sampling_params(request.sampling, context_length),
        **_cache(request),
    }
    if marks is not None:
        body["preserved_tokens"] = marks  # they may be tokens that have no text otherwise
    return body


def conversation_body(request: Request, context_length: int) -> dict[str, Any]:
    """Return the fields of a request to `/v1/chat/completions`, without the number of tokens.

    llama.cpp starts from the conversation, not from token ids. It continues an answer that stands
    as the conversation's last turn.
    """
    if request.generated:
        request = _with_generated_turn(request)
    body = {
        **chat_body(request),
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        "return_progress": True,
        "reasoning_format": "deepseek" if request.separate_reasoning else "none",
        "ignore_eos": request.ignore_eos,
        **sampling_params(request.sampling, context_length),
        **_cache(request),
    }
    if request.thinking_budget is not None:
        body["thinking_budget_tokens"] = request.thinking_budget
    return body


def _cache(request: Request) -> dict[str, bool]:
    """Return the field of a request that must not use the cache. Otherwise the engine decides."""
    return {} if request.use_cache else {"cache_prompt": False}


def chat_body(request: Request) -> dict[str, Any]:
    """Return the fields that llama.cpp needs to render and to answer a conversation."""
    turns = [turn(each, reasoning_as="reasoning_content") for each in request.messages or ()]
    body: dict[str, Any] = {"messages": turns}
    if request.tools is not None:
        body["tools"] = msgspec.Raw(request.tools.encode())
        body["parallel_tool_calls"] = request.parallel_calls
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    if request.template_kwargs is not None:
        body["chat_template_kwargs"] = msgspec.Raw(request.template_kwargs.encode())
    if request.continue_last_message:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif not request.open_answer:
        body["add_generation_prompt"] = False
    return body


def _with_generated_turn(request: Request) -> Request:
    """Return the request with what was generated so far as the conversation's last turn."""
    unnamed = [each for each in request.generated if isinstance(each, UnnamedTokens)]
    messages = with_begun_turn(
        request.messages or (),
        "".join(each.text for each in unnamed if not each.is_reasoning),
        "".join(each.text for each in unnamed if each.is_reasoning),
        continues=request.continue_last_message,
    )
    return msgspec.structs.replace(request, messages=messages, continue_last_message=True)
