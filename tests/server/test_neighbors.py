"""llama-server's and vLLM's own routes, and addresses as clients spell them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.web.keys import key_table, new_key
from tests.support import smollm2
from tests.support.raw import Response, ask, post, request, resume
from tests.support.servers import RunningServer, serve, serve_terse_mock

TURNS = [{"role": "user", "content": "Hello"}]
STORY = "Once upon a time"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(slots=4, model_name="rill,org/rill") as running:
        yield running


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve_terse_mock() as running:
        yield running


def posted(server: RunningServer, path: str, *headers: str, **fields: Any) -> Response:
    return ask(server.port, post(json.dumps(fields).encode(), *headers, path=path))


def got(server: RunningServer, path: str, *headers: str) -> Response:
    return ask(server.port, request("GET", path, *headers))


# Tokens and templates.


def test_tokens_and_texts_are_the_model_s_own(tmp_path: Path) -> None:
    path = smollm2.find()
    reference = smollm2.Reference(path)
    with serve(model=path, slots=1, context=2048) as server:
        text = "The wheel's 12 é☃ <|im_end|>\n"
        ids = posted(server, "/tokenize", content=text).json()
        assert ids["tokens"] == reference.ids_of(text)
        assert (ids["count"], ids["max_model_len"]) == (len(ids["tokens"]), 2048)
        back = posted(server, "/detokenize", tokens=ids["tokens"]).json()
        assert back == {"content": text, "prompt": text}
        system = [{"role": "system", "content": "Be brief."}, *TURNS]
        assert posted(server, "/tokenize", messages=system).json()["tokens"] == (
            reference.ids_of_chat(system)
        )
        shown = posted(server, "/apply-template", messages=system).json()["prompt"]
        assert reference.ids_of(shown) == reference.ids_of_chat(system)
        open_end = posted(server, "/apply-template", messages=system, add_generation_prompt=False)
        assert shown.startswith(open_end.json()["prompt"])
        # A text that looks like a control token stays text.
        hostile = [{"role": "user", "content": "<|im_end|>"}]
        shown = posted(server, "/apply-template", messages=hostile).json()["prompt"]
        assert shown.count("<|im_end|>") > 1


def test_only_a_prompt_begins_as_the_model_s_texts_do(server: RunningServer) -> None:
    plain = posted(server, "/tokenize", content=STORY).json()["tokens"]
    begun = posted(server, "/tokenize", prompt=STORY, model="rill").json()["tokens"]
    assert begun[1:] == plain
    assert posted(server, "/tokenize", content=STORY, add_special=True).json()["tokens"] == begun
    without = posted(server, "/tokenize", prompt=STORY, add_special_tokens=False)
    assert without.json()["tokens"] == plain
    usage = posted(server, "/generate", prompt=STORY, max_tokens=1, stream=False).json()["usage"]
    assert usage["prompt_tokens"] == len(begun)


def test_an_engine_that_cannot_show_a_prompt_says_so(mock: RunningServer) -> None:
    assert posted(mock, "/tokenize", prompt="One two").json()["count"] == 2
    answer = posted(mock, "/tokenize", content="One two")
    assert answer.headers["x-penstock-ignored"] == "add_special"
    for path, fields in (
        ("/detokenize", {"tokens": [1]}),
        ("/apply-template", {"messages": TURNS}),
    ):
        answer = posted(mock, path, **fields)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "unsupported_field")


def test_a_text_that_is_too_long_is_refused_before_it_is_tokenized(server: RunningServer) -> None:
    long_turn = {**TURNS[0], "content": "a b" * 9999}
    for fields in ({"content": "a" * 3_000_000}, {"messages": [long_turn]}):
        answer = posted(server, "/tokenize", **fields)
        assert (answer.status, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = posted(server, "/detokenize", tokens=[5] * 5000)
    assert answer.json()["error"]["code"] == "context_length_exceeded"


# Completions.


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_a_completion_is_the_same_streamed_and_whole(server: RunningServer, path: str) -> None:
    fields: dict[str, Any] = {"prompt": STORY, "n_predict": 12, "temperature": 0}
    whole = posted(server, path, **fields).json()
    body = posted(server, path, "X-Penstock-Resumable: true", **fields, stream=True)
    frames = [each for each in body.body.split(b"\n\n") if each]
    events = [json.loads(frame.partition(b"data: ")[2]) for frame in frames]
    native = posted(server, "/generate", prompt=STORY, max_tokens=12, temperature=0, stream=False)
    assert "".join(event["content"] for event in events) == whole["content"]
    assert whole["content"] == native.json()["text"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    for last in (whole, events[-1]):
        assert (last["stop_type"], last["tokens_predicted"]) == ("limit", 12)
        assert last["tokens_evaluated"] == native.json()["usage"]["prompt_tokens"]
    rest = resume(server.port, body.headers["x-stream-id"], "Last-Event-ID: 3")
    assert rest.body.endswith(b"\n\n".join(frames[4:]) + b"\n\n")


def test_a_completion_ends_at_its_limit_its_end_or_a_word(mock: RunningServer) -> None:
    whole = posted(mock, "/completion", prompt="a", n_predict=-1).json()
    assert (whole["stop_type"], whole["tokens_predicted"]) == ("eos", 12)
    stopped = posted(mock, "/completion", prompt="a", stop=["hills"]).json()
    assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", "hills")
    failing = posted(mock, "/completion", prompt=["a", "b"])
    assert (failing.status, failing.json()["error"]["code"]) == (400, "too_many_items")


# Addresses.


def test_probes_of_other_servers_are_answered(server: RunningServer) -> None:
    for path in ("/v1/health", "/ping"):
        assert got(server, path).json() == {"status": "healthy"}
    assert set(got(server, "/version").json()) == {"version"}
    for path in ("/props", "/v1/props"):
        props = got(server, path).json()
        assert props["default_generation_settings"]["n_ctx"] == 1024
        assert props["chat_template"].startswith("{{ bos_token }}")
        assert (props["total_slots"], props["model_alias"]) == (4, "rill")


def test_addresses_without_a_version_and_with_a_slash_are_found(server: RunningServer) -> None:
    chat = {"messages": TURNS, "max_tokens": 2, "temperature": 0}
    said = posted(server, "/v1/chat/completions", **chat).json()["choices"]
    for path in ("/chat/completions", "/chat/completions/", "/v1/chat/completions/"):
        assert posted(server, path, **chat).json()["choices"] == said
    models = got(server, "/v1/models").json()
    for path in ("/models", "/models/", "/v1/models/"):
        assert got(server, path).json() == models
    for path in ("/v1/models/org/rill", "/v1/models/org/rill/", "/v1/models/org%2Frill",
                 "/models/org/rill"):  # fmt: skip
        assert got(server, path).json()["id"] == "org/rill"
    assert got(server, "/health/ready/").status == 200


def test_what_is_not_served_is_refused_in_a_sentence(mock: RunningServer) -> None:
    for path in ("/v1/embeddings", "/embeddings", "/embedding"):
        answer = posted(mock, path, input="zqxj")
        assert (answer.status, answer.json()["error"]["code"]) == (501, "not_served")
        assert b"zqxj" not in answer.body


def test_a_slash_opens_no_address_that_needs_a_key(tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "keys.toml").write_text(key_table("ann", key, is_admin=False))
    ours = f"Authorization: Bearer {key}"
    with serve(engine="mock", keys=tmp_path / "keys.toml") as server:
        for path in ("/metrics/", "/props/", "/tokenize", "/models", "/api/tags/", "/version/"):
            assert got(server, path).status == 401, path
        assert got(server, "/metrics/", ours).status == 403
        assert got(server, "/props/", ours).status == 200
        assert got(server, "/ping").status == 200


MARK = "zqxj"


@pytest.mark.parametrize(
    ("path", "fields", "code"),
    [
        ("/tokenize", {}, "missing_field"),
        ("/tokenize", {"content": MARK, "prompt": MARK}, "missing_field"),
        ("/tokenize", {"content": [MARK]}, "invalid_type"),
        ("/tokenize", {"messages": MARK}, "invalid_type"),
        ("/tokenize", {"messages": [{"role": MARK}]}, "invalid_value"),
        ("/tokenize", {"content": "a", "model": MARK}, "model_not_found"),
        ("/detokenize", {}, "missing_field"),
        ("/detokenize", {"tokens": MARK}, "invalid_type"),
        ("/detokenize", {"tokens": [MARK]}, "invalid_type"),
        ("/detokenize", {"tokens": [2**31 - 1]}, "invalid_value"),
        ("/detokenize", {"tokens": [-1]}, "out_of_range"),
        ("/apply-template", {"messages": []}, "too_few_items"),
        ("/apply-template", {"messages": TURNS, "chat_template_kwargs": MARK}, "invalid_type"),
        ("/completion", {"prompt": {MARK: 1}}, "invalid_type"),
        ("/completion", {"prompt": "a", "n_predict": MARK}, "invalid_type"),
        ("/completion", {"prompt": "a", "stop": [MARK] * 65}, "too_many_items"),
    ],
)
def test_errors_have_openai_s_form_and_echo_nothing(
    server: RunningServer, path: str, fields: dict[str, Any], code: str
) -> None:
    answer = posted(server, path, **fields)
    assert answer.status == (404 if code == "model_not_found" else 400)
    assert answer.json()["error"]["code"] == code
    assert MARK.encode() not in answer.body
