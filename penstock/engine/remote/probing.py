"""Finds out what an upstream is and what it can do, by asking it.

In: a client of the upstream. Out: its `Profile`, or an UpstreamError. Two upstreams with the same
`vocabulary` turn the same texts into the same tokens: then one can go on with the other's tokens.
"""

import hashlib
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta

from penstock.engine.protocol import Feature
from penstock.engine.remote.failures import (
    GarbageError,
    MissingError,
    RefusedError,
    UpstreamError,
)
from penstock.engine.remote.http import ASK_TIMEOUT_S, HttpClient
from penstock.engine.remote.profile import DEFAULT_SLOTS, Kind, Profile
from penstock.request import Sampling

PROBE_TIMEOUT_S = 10.0
MAX_MODELS = 10_000
# No context, vocabulary or number of slots is larger.
MAX_COUNT = 2**31 - 1
_FEATURES = frozenset(get_args(Feature))
# Texts that vocabularies cut in different ways: words, numbers, code, scripts, spaces, marks.
TEXTS = (
    *("Once upon a time", " the", "The", "THE END", "don't", "co-operate", "naïve café", "ﬁne"),
    *("antidisestablishmentarianism", "supercalifragilistic", "qwertyuiop", "xzqjkv", "aaaaaaaa"),
    *("0", "7", "10", "123", "1234", "12345678", "3.14159", "1,000,000", "2026-11-27", "0x1F"),
    *("def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {", "<div class='a'>", "</a>"),
    *('{"key": [1, 2]}', "SELECT * FROM t;", "https://example.org/a?b=c", "a_b_c", "camelCase"),
    *("    ", "\t\t", "\n\n\n", " \n ", "a  b", "...", "!!!", "---", "#####", "====", "\\n", "%20"),
    *("Übergröße", "Ångström", "Привет, мир", "שלום", "مرحبا", "नमस्ते", "สวัสดี"),
    *(
        "你好世界",
        "こんにちは",
        "안녕하세요",
        "🙂",
        "👩‍👩‍👧‍👦",
        "🇩🇪",
        "∑∫√π",
        "½ ² ₃",
        "\u200b",
        "e\u0301",
    ),
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "<think>", "</think>", "<pad>"),
)
CONVERSATION = ({"role": "user", "content": "Hello"},)

Answer = TypeVar("Answer")


class _Props(msgspec.Struct):
    """The part of `/props` that llama.cpp's server and Penstock share."""

    class Generation(msgspec.Struct):
        n_ctx: int = 0

    class Own(msgspec.Struct):
        supports: tuple[str, ...] = ()
        vocabulary_size: int = 0
        sampling: Sampling | None = None

    default_generation_settings: Generation
    total_slots: int = 0
    chat_template: str = ""
    build_info: str = ""
    penstock: Own | None = None


class _Models(msgspec.Struct):
    class Model(msgspec.Struct):
        class Meta(msgspec.Struct):
            n_vocab: int = 0

        id: str
        owned_by: str = ""
        max_model_len: int | None = None
        context_length: int | None = None
        meta: Meta | None = None

    data: list[Model]


class _Version(msgspec.Struct):
    version: str


class _ModelInfo(msgspec.Struct):
    """The part of SGLang's `/model_info` that counts here."""

    model_path: str
    reasoning_parser: str | None = None


class Tokens(msgspec.Struct):
    """The answer of `/tokenize`."""

    tokens: tuple[Annotated[int, Meta(ge=0, le=MAX_COUNT)], ...]


async def probe(client: HttpClient, model: str, names: tuple[str, ...]) -> Profile:
    """Return the profile of an upstream.

    `model` is the model that it must serve, "" if the operator names none; then a model in `names`
    is preferred. Raises UpstreamError.
    """
    props = await _maybe(client, "/props", _Props)
    models = await _maybe(client, "/v1/models", _Models)
    if props is None and models is None:
        raise UpstreamError("it has neither /props nor /v1/models", began=False)
    chosen = _choose(models, model, names)
    kind, info = await _kind_of(client, props, chosen)
    if kind == "penstock":
        await _maybe(client, "/health/ready", _Version)  # raises while it drains
    context = chosen.max_model_len or chosen.context_length or 0
    if props is not None:
        context = props.default_generation_settings.n_ctx or context
    profile = Profile(
        kind,
        "text",
        chosen.id,
        _bounded(context),
        _bounded(0 if props is None else props.total_slots) or DEFAULT_SLOTS,
        chat_template="" if props is None else props.chat_template,
        vocabulary_size=0 if chosen.meta is None else _bounded(chosen.meta.n_vocab),
    )
    if props is not None and props.penstock is not None:
        own = props.penstock
        profile = msgspec.structs.replace(
            profile,
            own=tuple(f for f in own.supports if f in _FEATURES),
            vocabulary_size=_bounded(own.vocabulary_size),
            sampling=None if own.sampling is None else _defaults_in(own.sampling),
        )
    # An SGLang that separates reasoning does so only at its route for chats.
    separates = info is not None and bool(info.reasoning_parser)
    return profile if separates else await _with_vocabulary(client, profile)


def _bounded(count: int) -> int:
    """Return a number that an upstream reported, from 0 to MAX_COUNT."""
    return min(max(0, count), MAX_COUNT)


def _defaults_in(sampling: Sampling) -> Sampling:
    """Return the default sampling that a Penstock reported, without what is no model's default."""
    top_k = _bounded(sampling.top_k)
    return msgspec.structs.replace(sampling, top_k=top_k, seed=None, logit_bias=())


async def tokenize(
    client: HttpClient, kind: Kind, model: str, text: str, *, add_special: bool
) -> tuple[int, ...]:
    """Return the tokens of a text. Raises UpstreamError and RefusedError."""
    body: dict[str, Any]
    if kind in ("vllm", "sglang"):
        body = {"model": model, "prompt": text, "add_special_tokens": add_special}
    else:
        body = {"content": text, "add_special": add_special, "parse_special": True}
    return (await post(client, "/tokenize", body, Tokens)).tokens


async def post(client: HttpClient, path: str, body: dict[str, Any], kind: type[Answer]) -> Answer:
    """Return the answer to a question. Raises UpstreamError and RefusedError."""
    return await asked(client, path, body, kind, ASK_TIMEOUT_S)


async def asked(
    client: HttpClient, path: str, body: dict[str, Any], kind: type[Answer], timeout: float
) -> Answer:
    """Return the answer to a question, within `timeout` seconds.

    Raises UpstreamError and RefusedError.
    """
    sent = msgspec.json.encode(body)
    status, answer, retry_after = await client.ask(path, sent, timeout=timeout)
    if status != 200:
        raise failure_of(status, answer, retry_after)
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise GarbageError(f"its answer to {path} cannot be read") from None


def failure_of(
    status: int, answer: bytes, retry_after: float = 0.0
) -> UpstreamError | RefusedError:
    """Return the error for a response with a status other than 200.

    `retry_after` has the seconds of the response's `Retry-After`, 0 without one.
    """
    if status in (400, 413, 422):
        return RefusedError(status, _code_in(answer))
    if status in (429, 503):
        message = f"it has no room (HTTP {status})"
        return UpstreamError(message, began=False, is_busy=True, pause=retry_after)
    if status in (404, 405, 501):
        return MissingError(f"it has no such route or model (HTTP {status})", began=False)
    if status in (401, 403):
        return UpstreamError(f"it does not let Penstock in (HTTP {status})", began=False)
    return UpstreamError(f"it fails (HTTP {status})")


class _Error(msgspec.Struct):
    class Inner(msgspec.Struct):
        code: Any = None
        type: Any = None

    error: Inner = msgspec.field(default_factory=Inner)


def _code_in(answer: bytes) -> str:
    """Return the code of OpenAI's error object, "" if there is none."""
    try:
        error = msgspec.json.decode(answer, type=_Error).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    code = error.code if isinstance(error.code, str) else error.type
    return code if isinstance(code, str) else ""


async def _maybe(client: HttpClient, path: str, kind: type[Answer]) -> Answer | None:
    """Return what the upstream says at `path`, None if it says nothing of this form there."""
    status, answer, _ = await client.ask(path, timeout=PROBE_TIMEOUT_S)
    if status == 503:
        raise UpstreamError("it is not ready (HTTP 503)", began=False, is_busy=True)
    if status in (401, 403):
        raise UpstreamError(f"it does not accept the key (HTTP {status})", began=False)
    if status >= 500:
        raise UpstreamError(f"it fails (HTTP {status})", began=False)
    if status != 200:
        return None
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _choose(models: _Models | None, model: str, names: tuple[str, ...]) -> _Models.Model:
    """Return the model to use. Raises UpstreamError if it is not there, or if it is not clear."""
    served = models.data[:MAX_MODELS] if models is not None else []
    by_name = {each.id: each for each in served}
    for name in (model, *names):
        if name in by_name:
            return by_name[name]
    if model:
        raise UpstreamError("it does not serve the model that the configuration names", began=False)
    if len(served) == 1:
        return served[0]
    if not served:
        return _Models.Model("")
    raise UpstreamError(
        "it serves several models: name one with --model-name, or with model in its table",
        began=False,
    )


async def _kind_of(
    client: HttpClient, props: _Props | None, model: _Models.Model
) -> tuple[Kind, _ModelInfo | None]:
    """Return the kind of the upstream. For SGLang, also return its report about its model."""
    if props is not None:
        return ("penstock" if props.build_info.startswith("penstock") else "llamacpp"), None
    if model.owned_by == "vllm" and await _maybe(client, "/version", _Version) is not None:
        return "vllm", None
    if (info := await _sglang_info(client)) is not None:
        return "sglang", info
    if await _maybe(client, "/api/version", _Version) is not None:
        return "ollama", None
    return "openai", None


async def _sglang_info(client: HttpClient) -> _ModelInfo | None:
    """Return what SGLang says of its model. Old versions have the second route only."""
    info = await _maybe(client, "/model_info", _ModelInfo)
    return info or await _maybe(client, "/get_model_info", _ModelInfo)


async def _takes_ids(client: HttpClient, profile: Profile) -> bool:
    """Return True if this SGLang renders conversations as they are, from version 0.5.23 on.

    Older versions ignore `add_generation_prompt`: then both renderings are the same. Some of them
    do not report the ids of an answer's tokens either. Raises UpstreamError and RefusedError.
    """
    body = {"model": profile.model, "messages": CONVERSATION}
    closed, opened = [
        await post(client, "/tokenize", {**body, "add_generation_prompt": opens}, Tokens)
        for opens in (False, True)
    ]
    return closed != opened


async def _with_vocabulary(client: HttpClient, profile: Profile) -> Profile:
    """Return the profile with its level: "ids" if the upstream tokenizes as it says it does."""
    if profile.kind in ("ollama", "openai") or not profile.context_length:
        return profile
    if profile.own is not None and "return_token_ids" not in profile.own:
        return profile
    digest = hashlib.sha256()
    try:
        if profile.kind == "sglang" and not await _takes_ids(client, profile):
            return profile
        for add_special in (False, True):
            ids = await tokenize(
                client, profile.kind, profile.model, "\n".join(TEXTS), add_special=add_special
            )
            digest.update(msgspec.json.encode(ids))
    except RefusedError:
        return profile
    except UpstreamError as error:
        if error.is_busy or isinstance(error, GarbageError):
            raise
        return profile  # it has no such route
    return msgspec.structs.replace(profile, level="ids", vocabulary=digest.hexdigest())
