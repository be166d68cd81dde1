"""A model that was trained to fill gaps fills them, over every API whose clients ask for that.

The model is random, with rill's vocabulary and Qwen's tokens for gaps. So its answers are noise,
but each depends on every token of its prompt.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.engine.llamacpp.hub import find_model
from tests.support.calling import client_of, name_of
from tests.support.openai_wire import DONE
from tests.support.random_model import random_model
from tests.support.raw import Response, ask, frames_of, open_stream, post, resume
from tests.support.servers import RunningServer, serve
from tests.support.templates import TOOLS

MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")
CONTEXT = 1024
BEFORE, AFTER = "The fox went", "and slept."
FILES = [{"filename": "bear.txt", "text": "The bear woke."}, {"text": "Snow fell."}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "coder.gguf"
    rill = Path(find_model("rill"))
    return random_model(path, rill, context=CONTEXT, template=TOOLS, more_tokens=MARKS)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    with serve(model=model, context=CONTEXT, slots=1) as running:
        yield running


def posted(server: RunningServer, path: str, **body: Any) -> Response:
    return ask(server.port, post(json.dumps(body).encode(), path=path))


def infill(server: RunningServer, before: str = BEFORE, after: str = AFTER, **more: Any) -> Any:
    body = {"input_prefix": before, "input_suffix": after, "n_predict": 12, "temperature": 0}
    return posted(server, "/infill", **body | more).json()


def tokens(server: RunningServer, text: str) -> int:
    """Return how many tokens a text has by itself."""
    return int(posted(server, "/tokenize", content=text).json()["count"])


def test_the_same_gap_gets_the_same_answer_over_every_api(server: RunningServer) -> None:
    filled = infill(server)
    assert filled["content"]
    with client_of(server) as client:
        choice = client.completions.create(
            model=name_of(server), prompt=BEFORE, suffix=AFTER, max_tokens=12, temperature=0
        ).choices[0]
    of_ollama = posted(
        server,
        "/api/generate",
        prompt=BEFORE,
        suffix=AFTER,
        stream=False,
        options={"num_predict": 12, "temperature": 0},
    ).json()
    assert choice.text == of_ollama["response"] == filled["content"]
    assert infill(server, "The fox", AFTER, prompt=" went")["content"] == filled["content"]
    continued = posted(server, "/completion", prompt=BEFORE, n_predict=12, temperature=0).json()
    others = (continued, infill(server, after="and ran."), infill(server, input_extra=FILES))
    assert filled["content"] not in {each["content"] for each in others}


def test_the_prompt_has_both_sides_the_files_and_their_marks(server: RunningServer) -> None:
    """The whole prompt is one token for its beginning, the texts, and a token for each mark."""
    sides = 1 + 3 + tokens(server, BEFORE) + tokens(server, AFTER)
    assert infill(server)["tokens_evaluated"] == sides
    texts = ("myproject\n", "bear.txt\n", "The bear woke.", "tmp\n", "Snow fell.", "filename\n")
    files = 4 + sum(tokens(server, text) for text in texts)
    assert infill(server, input_extra=FILES)["tokens_evaluated"] == sides + files


def test_a_mark_in_a_text_is_only_text(server: RunningServer) -> None:
    """Otherwise a text could end the gap, or begin another file."""
    spelled = infill(server, BEFORE, f"{MARKS[2]} x")["tokens_evaluated"]
    short = infill(server, BEFORE, " x")["tokens_evaluated"]
    assert spelled - short > len("fim_middle") / 4  # a token would be 1


def test_an_editor_can_ask_for_nothing_and_a_file_can_begin_with_the_gap(
    server: RunningServer,
) -> None:
    warm = infill(server, n_predict=0)
    assert (warm["content"], warm["tokens_predicted"]) == ("", 0)
    assert infill(server, "", "")["tokens_evaluated"] == 4


def test_a_gap_with_too_much_around_it_is_refused_and_not_cut(server: RunningServer) -> None:
    body = {"input_prefix": "a b c " * CONTEXT, "input_suffix": AFTER}
    answer = posted(server, "/infill", **body)
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"input_prefix": "zqxj"}, "missing_field"),
        ({"input_prefix": "zqxj", "input_suffix": ["zqxj"]}, "invalid_type"),
        ({"input_prefix": "", "input_suffix": "", "prompt": [1, 2]}, "invalid_type"),
        ({"input_prefix": "", "input_suffix": "", "suffix": "zqxj"}, "invalid_value"),
        (
            {"input_prefix": "", "input_suffix": "", "input_extra": [{"text": ""}] * 257},
            "too_many_items",
        ),
        ({"input_prefix": "", "input_suffix": "", "input_extra": [{}]}, "missing_field"),
        ({"input_prefix": "", "input_suffix": "", "n_predict": -2}, "out_of_range"),
    ],
)
def test_a_wrong_gap_is_refused_by_name(
    server: RunningServer, fields: dict[str, Any], code: str
) -> None:
    answer = posted(server, "/infill", **fields)
    assert (answer.status, answer.json()["error"]["code"]) == (400, code)
    assert b"zqxj" not in answer.body


def test_token_ids_have_no_suffix(server: RunningServer) -> None:
    answer = posted(server, "/v1/completions", prompt=[5, 6], suffix=AFTER)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "suffix")


def test_ollama_says_that_the_model_fills_gaps(server: RunningServer) -> None:
    assert "insert" in posted(server, "/api/show", model=name_of(server)).json()["capabilities"]


def test_a_gap_is_filled_to_its_end_though_the_engine_dies_and_the_client_leaves(
    model: Path,
) -> None:
    """The rest continues the same prompt: the answer is the undisturbed one."""
    body = {"prompt": BEFORE, "suffix": AFTER, "max_tokens": 120, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True}
    sent = post(json.dumps(body).encode(), "X-Penstock-Resumable: true", path="/v1/completions")
    with serve(model=model, context=CONTEXT, slots=1, pace=100) as server:
        whole = frames_of(ask(server.port, sent).body)
        connection, stream_id = open_stream(server.port, sent)
        with connection:
            events = connection.events()
            first = [next(events) for _ in range(20)]
            os.kill(server.engine_pid(), signal.SIGKILL)
        rest = frames_of(resume(server.port, stream_id, f"Last-Event-ID: {len(first) - 1}").body)
    assert texts_of(whole)
    disturbed = "".join(each["choices"][0]["text"] for each in first) + texts_of(rest)
    assert disturbed == texts_of(whole)
    assert len(first) + len(rest) == len(whole)


def texts_of(frames: list[bytes]) -> str:
    """Return the text of the frames of a stream that ends with [DONE]."""
    *frames, done = frames
    assert done.endswith(DONE)
    chunks = [json.loads(frame.partition(b"data: ")[2]) for frame in frames]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_a_model_without_the_tokens_refuses_in_a_sentence() -> None:
    with serve() as server:
        for path, fields in (
            ("/infill", {"input_prefix": "zqxj", "input_suffix": ""}),
            ("/v1/completions", {"prompt": "zqxj", "suffix": "zqxj"}),
            ("/api/generate", {"prompt": "zqxj", "suffix": "zqxj"}),
        ):
            answer = posted(server, path, **fields)
            assert answer.status == 400
            assert b"no tokens that mark a gap" in answer.body
            assert b"zqxj" not in answer.body
