"""Makes the prompts of requests from the tokenizers and templates of upstreams.

In: requests, and an upstream that takes token ids. Out: token ids, and texts of token ids. Every
upstream has the same vocabulary, so any of them may be asked.
"""

from typing import Any

import msgspec

from penstock.engine.remote.asking import chat_fields
from penstock.engine.remote.control import without_control_texts
from penstock.engine.remote.failures import UpstreamError
from penstock.engine.remote.pool import Upstream
from penstock.engine.remote.probing import Tokens, post, tokenize
from penstock.request import Request, UnnamedTokens


class _Prompt(msgspec.Struct):
    prompt: str


class _Text(msgspec.Struct):
    """The answer of `/detokenize`: each server has its own name for the text."""

    content: str | None = None
    prompt: str | None = None
    text: str | None = None


async def prompt_ids_of(upstream: Upstream, request: Request) -> tuple[int, ...]:
    """Return the tokens of a request's prompt. Raises UpstreamError and RefusedError."""
    profile = upstream.profile
    assert profile is not None
    client, kind, model = upstream.client, profile.kind, profile.model
    special = request.add_special_tokens
    if request.messages is None:
        return await tokenize(client, kind, model, request.prompt or "", add_special=special)
    body = chat_fields(await without_control_texts(upstream, request))
    if kind == "llamacpp":
        prompt = (await post(client, "/apply-template", body, _Prompt)).prompt
        return await tokenize(client, kind, model, prompt, add_special=special)
    if kind != "penstock":  # only there a call that must come changes the prompt
        body.pop("tool_choice", None)
    if kind == "sglang":
        # Only with this field the turns are rendered as they are, and a begun turn needs True.
        body["add_generation_prompt"] = request.open_answer or request.continue_last_message
    if model:
        body["model"] = model
    return (await post(client, "/tokenize", body, Tokens)).tokens


async def generated_ids_of(upstream: Upstream, generated: list[int | UnnamedTokens]) -> list[int]:
    """Return the tokens of an answer, some of which were counted without their ids."""
    ids: list[int] = []
    for each in generated:
        if isinstance(each, int):
            ids.append(each)
        elif each.num_tokens:
            # Some tokenizers put a space before any text; only the last tokens are the text's.
            ids += (await _ids_of(upstream, each.text))[-each.num_tokens :]
    return ids


async def text_of(upstream: Upstream, token_ids: list[int]) -> str:
    """Return the text of tokens. Raises UpstreamError and RefusedError."""
    profile = upstream.profile
    assert profile is not None
    if not token_ids:
        return ""
    body: dict[str, Any] = {"tokens": token_ids}
    if profile.model:
        body["model"] = profile.model
    if profile.kind == "sglang":
        body["skip_special_tokens"] = False
    found = await post(upstream.client, "/detokenize", body, _Text)
    text = next((t for t in (found.content, found.prompt, found.text) if t is not None), None)
    if text is None:
        raise UpstreamError("its answer to /detokenize has no text")
    return text


async def _ids_of(upstream: Upstream, text: str) -> tuple[int, ...]:
    profile = upstream.profile
    assert profile is not None
    return await tokenize(upstream.client, profile.kind, profile.model, text, add_special=False)
