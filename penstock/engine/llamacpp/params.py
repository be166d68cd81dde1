"""llama.cpp's parameters: for choosing tokens, and for its start."""

import difflib
import os
from typing import Any

from penstock.errors import StartError
from penstock.request import Request, Sampling

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
        "cache_prompt": request.use_cache,
        "ignore_eos": request.ignore_eos,
        **sampling_params(request.sampling, context_length),
    }
    if marks is not None:
        body["preserved_tokens"] = marks  # they may be tokens that have no text otherwise
    return body


def num_usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: respects a container's limits
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_param(params: object, name: str, value: object) -> None:
    """Set a parameter of llama.cpp by name. Raises StartError if the name or value is invalid."""
    *path, last = name.split(".")
    if not path and not hasattr(params, last) and hasattr(params.cpuparams, last):  # type: ignore[attr-defined] # xllamacpp has no types
        path = ["cpuparams"]
    owner: Any = params
    try:
        for part in path:
            owner = getattr(owner, part)
        getattr(owner, last)
    except AttributeError:
        names = [n for n in dir(owner) if not n.startswith("_")]
        near = difflib.get_close_matches(last, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "xllamacpp's README lists the names."
        raise StartError(f"llama.cpp has no parameter {name!r}.", hint) from None
    try:
        setattr(owner, last, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise StartError(
            f"llama.cpp does not take this value for {name!r}: {error}.", "Give another value."
        ) from None
