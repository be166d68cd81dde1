"""`penstock bench` measures real servers, and scripted servers that misbehave."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
import uvloop

from penstock.bench.answer import (
    CUT,
    ERROR_EVENT,
    NO_CONNECTION,
    NOT_EVENTS,
    TIMEOUT,
)
from penstock.bench.http import HttpClient
from penstock.bench.plan import Lengths, Load, Prompts
from penstock.bench.run import BenchError, BenchOptions, Result, bench
from tests.support.bench_events import DONE, END, ROLE, frame, text, usage
from tests.support.ports import free_port
from tests.support.scripted_server import END as BODY_END
from tests.support.scripted_server import (
    HEAD,
    PATIENCE_S,
    Peer,
    Script,
    chunk,
    scripted_server,
    whole,
)
from tests.support.servers import RunningServer, serve

KEY = "sk-very-secret-indeed"
MODELS = whole(b'{"object": "list", "data": [{"id": "first"}, {"id": "second"}]}')

OPTIONS = BenchOptions(
    url="",
    load=Load(concurrency=1, num_requests=1),
    api="chat",
    model=None,
    prompts=Prompts(["Once upon a time"]),
    max_tokens=Lengths(5, 5),
    warm_up=0,
    timeout_s=20.0,
    include_usage=True,
    fields={},
    limits_s=None,
    seed=0,
    api_key=None,
)


def run(url: str, **changes: Any) -> Result:
    """Measure a server, with these changes to OPTIONS."""
    options = msgspec.structs.replace(OPTIONS, url=url, **changes)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result, _ = runner.run(bench(options, lambda doing, run: None))
    return result


def models(peer: Peer) -> None:
    assert peer.path == "/v1/models"
    peer.send(MODELS)


def answering(*frames: bytes) -> Script:
    """Return a script that sends each frame in a chunk, and then the end of the body."""

    def script(peer: Peer) -> None:
        peer.send(HEAD, *(chunk(each) for each in frames), BODY_END)

    return script


GOOD = answering(ROLE, text(), text(), END, usage(4, 2), DONE)


# Real servers.


@pytest.fixture(scope="module")
def mock() -> Iterator[RunningServer]:
    with serve(engine="mock", mock_interval=0.001) as server:
        yield server


@pytest.mark.parametrize("load", [Load(concurrency=4), Load(rate=200)])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_mock_is_measured_exactly(mock: RunningServer, load: Load, api: str) -> None:
    load = msgspec.structs.replace(load, num_requests=20)
    prompts = Prompts(lengths=Lengths(30, 30))
    result = run(mock.url, load=load, api=api, prompts=prompts, warm_up=2)
    found = result.figures
    assert (found.num_finished, found.errors, result.model) == (20, {}, "mock")
    assert found.completion_tokens is not None
    assert found.prompt_tokens is not None
    assert (found.completion_tokens.mean, found.prompt_tokens.mean) == (5, 30)
    assert found.tokens_per_second == pytest.approx(100 / found.seconds)
    assert found.itl_s is not None
    assert found.itl_s.count == 80  # 5 tokens each, and an event for each token
    assert len(result.requests) == 20
    assert {row.finish_reason for row in result.requests} == {"length"}


def test_the_built_in_model_is_measured_with_llama_cpp_s_own_counts() -> None:
    with serve(slots=2) as server:
        prompts = Prompts(lengths=Lengths(60, 60))
        load = Load(concurrency=2, num_requests=6)
        result = run(server.url, load=load, prompts=prompts, warm_up=1, api="completions")
    found = result.figures
    assert (result.model, found.num_finished, found.errors) == ("rill", 6, {})
    assert found.completion_tokens is not None
    assert found.prompt_tokens is not None
    assert 1 <= found.completion_tokens.max <= 5
    assert abs(found.prompt_tokens.mean - 60) < 15  # because the prompts are calibrated


def test_an_engine_that_fails_on_the_way_is_an_error_in_the_stream() -> None:
    with serve(engine="mock", mock_interval=0.001, engine_arg=["fail_at=2"]) as server:
        found = run(server.url, load=Load(concurrency=2, num_requests=4)).figures
    assert found.errors == {ERROR_EVENT: 4}
    assert "told to fail" in found.messages[ERROR_EVENT]
    assert (found.num_finished, found.ttft_s) == (0, None)


def test_a_key_is_asked_for_and_sent(tmp_path: Path) -> None:
    with serve(engine="mock", mock_interval=0.001, api_key=KEY) as server:
        with pytest.raises(BenchError, match="requires an API key") as wanted:
            run(server.url)
        assert "PENSTOCK_API_KEY" in wanted.value.hint
        with pytest.raises(BenchError, match="rejected the API key"):
            run(server.url, api_key="another")
        assert run(server.url, api_key=KEY).figures.num_finished == 1


def test_tls_is_spoken_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key, trusted = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    authority.cert_pem.write_to_path(str(trusted))
    flags = {"tls_cert": certificate, "tls_key": key}
    with serve(engine="mock", mock_interval=0.001, **flags) as server:
        assert server.url.startswith("https:")
        with pytest.raises(BenchError, match="not trusted") as untrusted:
            run(server.url)
        assert "SSL_CERT_FILE" in untrusted.value.hint
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        found = run(server.url, load=Load(concurrency=3, num_requests=9)).figures
        assert found.num_finished == 9
        with pytest.raises(BenchError, match="No answer"):
            run(server.url.replace("https:", "http:"))


# Servers that misbehave.


def stall(peer: Peer) -> None:
    peer.send(HEAD, chunk(ROLE), chunk(text()))
    peer.wait_until_gone()


def never_end(peer: Peer) -> None:
    peer.send(HEAD)
    with contextlib.suppress(ConnectionError):
        while True:
            peer.send(chunk(text()))


def cut(peer: Peer) -> None:
    peer.send(HEAD, chunk(text()))
    peer.close()


def reset(peer: Peer) -> None:
    peer.send(HEAD, chunk(text()))
    peer.reset()


def talk_of_something_else(peer: Peer) -> None:
    peer.send(b"220 mail.example.org ESMTP\r\n")
    peer.wait_until_gone()


def full(peer: Peer) -> None:
    body = json.dumps({"error": {"message": f"Slow down, {peer.headers['authorization']}."}})
    peer.send(whole(body.encode(), b"429 Too Many Requests"))


def unauthorised(peer: Peer) -> None:
    peer.send(whole(b"{}", b"401 Unauthorized"))


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (stall, TIMEOUT),
        (never_end, TIMEOUT),
        (cut, CUT),
        (reset, CUT),
        (answering(text()), CUT),
        (talk_of_something_else, NO_CONNECTION),
        (full, "HTTP 429"),
        (answering(text(), frame({"error": {"message": "no"}}), DONE), ERROR_EVENT),
        (answering(b"data: what?\n\n"), NOT_EVENTS),
        (lambda peer: peer.send(whole(b"{}")), NOT_EVENTS),
    ],
)
def test_what_goes_wrong_is_counted_by_its_kind(script: Script, kind: str) -> None:
    with scripted_server(models, script, GOOD) as server:
        load = Load(concurrency=1, num_requests=2)
        patience = 3.0 if kind == TIMEOUT else OPTIONS.timeout_s
        found = run(server.url, load=load, timeout_s=patience, api_key=KEY).figures
    assert found.errors == {kind: 1}
    assert found.num_finished == 1
    assert found.completion_tokens is not None
    assert found.completion_tokens.max == 2


def test_a_key_that_a_server_says_back_is_not_passed_on() -> None:
    with scripted_server(models, full) as server:
        result = run(server.url, api_key=KEY)
    assert "Slow down" in result.figures.messages["HTTP 429"]
    assert KEY.encode() not in msgspec.json.encode(result)


def test_without_usage_events_are_counted_under_their_own_name() -> None:
    with scripted_server(models, answering(ROLE, text(), text(), END, DONE)) as server:
        found = run(server.url).figures
    assert (found.num_finished, found.num_without_usage) == (1, 1)
    assert (found.tokens_per_second, found.completion_tokens) == (None, None)
    assert found.events_per_second == pytest.approx(2 / found.seconds)


def test_a_connection_is_kept_and_one_that_the_server_has_closed_is_replaced() -> None:
    def leave(peer: Peer) -> None:
        GOOD(peer)
        peer.close()

    with scripted_server(models, GOOD, leave, GOOD) as server:
        found = run(server.url, load=Load(concurrency=1, num_requests=3)).figures
        assert server.num_connections == 2
    assert (found.num_finished, found.errors) == (3, {})


def test_a_body_may_end_with_its_connection_and_a_head_be_announced() -> None:
    head = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    )

    def until_closed(peer: Peer) -> None:
        peer.send(head, text(), END, usage(1, 1))
        peer.close()

    with scripted_server(models, until_closed) as server:
        found = run(server.url).figures
    assert (found.num_finished, found.errors) == (1, {})


# Nothing to measure.


def test_nobody_there_is_said_with_what_to_do() -> None:
    with pytest.raises(BenchError, match="Connection refused") as error:
        run(f"http://127.0.0.1:{free_port()}")
    assert "port" in error.value.hint


def test_a_wrong_url_is_said_with_what_to_do() -> None:
    with (
        scripted_server(lambda peer: peer.send(whole(b"{}", b"404 Not Found"))) as server,
        pytest.raises(BenchError, match="/api/models answered with HTTP 404") as error,
    ):
        run(f"{server.url}/api")
    assert "/v1" in error.value.hint


def test_a_server_that_lists_no_models_is_believed_where_one_is_named() -> None:
    with scripted_server(lambda peer: peer.send(whole(b"{}", b"404 Not Found")), GOOD) as server:
        assert run(server.url, model="mine").figures.num_finished == 1
        assert json.loads(server.requests[1].body)["model"] == "mine"


def test_a_wrong_model_is_said_with_those_there_are() -> None:
    refusal = whole(b'{"error": {"message": "No such model."}}', b"404 Not Found")
    with (
        scripted_server(models, lambda peer: peer.send(refusal)) as server,
        pytest.raises(BenchError, match="No such model") as error,
    ):
        run(server.url, model="third", warm_up=1)
    assert "first, second" in error.value.hint


def test_a_key_that_only_answers_want_is_asked_for() -> None:
    with (
        scripted_server(models, unauthorised) as server,
        pytest.raises(BenchError, match="requires an API key"),
    ):
        run(server.url, warm_up=1)


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("stream_options is not allowed", "--no-usage"),
        ("use 'max_completion_tokens' instead", "--field max_completion_tokens"),
        ("this model has no chat template", "--api completions"),
    ],
)
def test_a_refused_field_is_said_with_the_flag_that_helps(message: str, hint: str) -> None:
    body = whole(json.dumps({"error": {"message": message}}).encode(), b"400 Bad Request")
    with (
        scripted_server(models, lambda peer: peer.send(body)) as server,
        pytest.raises(BenchError) as error,
    ):
        run(server.url, warm_up=1)
    assert hint in error.value.hint


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:y", "http://me:pw@x", "http://a\nb"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        HttpClient(url, None, time.perf_counter)


def test_a_key_with_a_line_break_is_refused_without_saying_it() -> None:
    with pytest.raises(ValueError, match="not allowed in a header") as error:
        HttpClient("http://x", "secret\r\nX-Evil: 1", time.perf_counter)
    assert "secret" not in str(error.value)


def test_urls_with_and_without_a_path() -> None:
    assert HttpClient("http://[::1]:8000/", None, time.perf_counter).url == "http://[::1]:8000/v1"
    assert HttpClient("https://x/api/v3", None, time.perf_counter).url == "https://x/api/v3"


# The command.


def command(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", "bench", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
    )


def test_the_command_prints_a_table_and_writes_its_files(
    mock: RunningServer, tmp_path: Path
) -> None:
    figures, page = tmp_path / "run.json", tmp_path / "run.html"
    process = command(
        *(mock.url, "-r", 50, "-n", 10, "--slo", "ttft=10s", "--max-tokens", "2-4"),
        *("--json", figures, "--plot", page),
        PENSTOCK_API_KEY=KEY,
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")  # no progress bar without a terminal
    for each in ("TTFT", "ITL", "p99", "10 of 10", "the server's usage", "goodput", "sent late"):
        assert each in out
    read = figures.read_text()
    assert json.loads(read)["figures"]["num_finished"] == 10
    assert "<svg" in page.read_text()
    assert "src=" not in page.read_text()
    for each in (out, read, page.read_text()):
        assert KEY not in each


def test_ctrl_c_ends_it_with_the_results_so_far(tmp_path: Path) -> None:
    has_begun = threading.Event()

    def begin(peer: Peer) -> None:
        peer.send(HEAD, chunk(text()))
        has_begun.set()
        peer.wait_until_gone()

    figures = tmp_path / "run.json"
    with scripted_server(models, GOOD, GOOD, begin) as server:
        process = command(server.url, "-c", 1, "--warm-up", 0, "--json", figures)
        assert has_begun.wait(PATIENCE_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "Stopped early" in out
    assert "2 of 3" in out
    found = json.loads(figures.read_text())
    assert found["was_interrupted"] is True
    assert found["figures"]["num_unfinished"] == 1
    assert found["figures"]["errors"] == {}


def test_it_ends_with_1_where_nothing_was_answered() -> None:
    with scripted_server(models, cut, full) as server:
        process = command(server.url, "-c", 1, "-n", 2, "--warm-up", 0, "--api-key", KEY)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert CUT in out
    assert "HTTP 429" in out
    assert KEY not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9"], "Is the server running"),
        (["nowhere"], "http://127.0.0.1:8000"),
        (["http://x", "-c", "4", "-r", "5"], "not both"),
        (["http://x", "--prompt", "a", "--prompt-tokens", "5"], "choose one"),
        (["http://x", "--prompts", "/nowhere.txt"], "No such file"),
        (["http://x", "--plot", "a.pdf"], ".html, .png, .svg"),
        (["http://x", "--json", "/nowhere/a.json"], "no folder /nowhere"),
        (["http://x", "-r", "nan"], "above 0"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(arguments: list[str], said: str) -> None:
    process = command(*arguments)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("Error: ")
    assert said in err


def test_prompts_come_from_lines_and_from_json_lines(tmp_path: Path) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_text("one\n\ntwo\n")
    objects.write_text('{"prompt": "one"}\n{"prompt": "two\\n"}\n')
    for file, asked in ((lines, ["one", "two"]), (objects, ["one", "two\n"])):
        with scripted_server(models, GOOD, GOOD) as server:
            flags = ("-c", 1, "-n", 2, "--warm-up", 0, "--api", "completions")
            process = command(server.url, *flags, "--prompts", file)
            process.communicate(timeout=60)
        assert process.returncode == 0
        assert [json.loads(each.body)["prompt"] for each in server.requests[1:]] == asked
