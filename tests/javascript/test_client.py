"""The JavaScript client in Node: answers, refusals, cuts and stops, on real sockets."""

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.client import Client
from tests.client.test_answer import FINISH
from tests.client.test_resume import event
from tests.client.test_resumed_streams import LOG, TEXTS, answers, ends, sends
from tests.faults.proxy import CLOSES, Faults, cut, proxy_in_a_thread
from tests.javascript.programs import Told, asked, read, running
from tests.support.keyed import Keys
from tests.support.scripted_server import END, HEAD, Peer, chunk, scripted_server, whole
from tests.support.servers import RunningServer, serve

COMPLETION = {
    "text": "Hi",
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    "request_time": 0.25,
    "finish_reason": "length",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """Serve a mock whose token i is "<first word of the prompt>:<i> ", so the text is known."""
    arguments = ["numbered=true", "length=2000"]
    with serve(engine="mock", mock_interval=0.005, engine_arg=arguments) as running:
        yield running


def numbered(word: str, count: int) -> str:
    return "".join(f"{word}:{n} " for n in range(count))


# --- answers


def test_a_stream_arrives_in_order_with_its_figures(server: RunningServer) -> None:
    told = read(server.url, "stream", {"prompt": "One", "max_tokens": 5})
    assert told.of("delta") == [f"One:{n} " for n in range(5)]
    assert told.names == ["begin", "end"]
    end = told.end
    assert (end["text"], end["finishReason"]) == (numbered("One", 5), "length")
    assert (end["lastEventId"], end["numResumes"]) == (5, 0)
    assert end["usage"]["completion_tokens"] == 5
    assert end["timings"]["total_time"] > 0
    assert end["id"] == told.of("begin")[0]


def test_a_whole_answer_arrives_with_its_figures(server: RunningServer) -> None:
    end = read(server.url, "generate", {"prompt": "One", "max_tokens": 3}).end
    assert (end["text"], end["finishReason"]) == (numbered("One", 3), "length")
    assert end["usage"]["completion_tokens"] == 3
    assert end["requestTime"] > 0


def test_a_chat_has_content_and_figures_and_resumes_across_cuts(server: RunningServer) -> None:
    chat = {"messages": [{"role": "user", "content": "Two words"}], "max_tokens": 60}
    with proxy_in_a_thread(server.address) as proxy:
        faults = iter([Faults(down=[cut(3000)])])
        proxy.faults_of = lambda _: next(faults, Faults())
        told = read(f"http://127.0.0.1:{proxy.address[1]}", "chat", chat)
    word = told.end["text"].partition(":")[0]
    assert told.end["text"] == numbered(word, 60)
    assert "".join(delta["content"] for delta in told.of("delta")) == numbered(word, 60)
    assert told.names == ["begin", "cut", "resume", "end"]
    assert told.end["usage"]["completion_tokens"] == 60
    again = read(server.url, "resumeChat", told.end["id"])
    assert again.end["text"] == told.end["text"]


def test_a_chat_shows_reasoning_and_calls() -> None:
    calls = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    deltas = [{"reasoning_content": "Hm"}, {"content": "So"}, {"tool_calls": calls}]
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    frames = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks]
    with scripted_server(sends(*frames, b"data: [DONE]\n\n", then=ends)) as server:
        told = read(server.url, "chat", {"messages": []})
    assert told.of("delta") == [{"reasoning": "Hm"}, {"content": "So"}, {"calls": calls}]
    assert told.end["finishReason"] == "tool_calls"


# --- cuts


def test_cuts_at_any_byte_lose_and_repeat_nothing(server: RunningServer) -> None:
    first = iter([Faults(down=[cut(900)])])  # without the first head there is no id to resume

    def faults(chance: random.Random) -> Faults:
        how = chance.choice(CLOSES)
        return next(first, Faults(down=[cut(chance.randint(300, 1500), how)]))

    with proxy_in_a_thread(server.address, faults, seed=7) as proxy:
        url = f"http://127.0.0.1:{proxy.address[1]}"
        told = read(url, "stream", {"prompt": "Cut", "max_tokens": 150})
    assert told.text == told.end["text"] == numbered("Cut", 150)
    assert told.end["numResumes"] > 3
    assert told.names == ["begin", *["cut", "resume"] * told.end["numResumes"], "end"]


def test_an_engine_that_is_killed_is_not_noticed(server: RunningServer) -> None:
    with running(asked(server.url, "stream", {"prompt": "Kill", "max_tokens": 1000})) as lines:
        told = Told([next(lines) for _ in range(4)])
        os.kill(server.engine_pid(), signal.SIGKILL)
        told.everything += lines
    assert told.text == numbered("Kill", 1000)
    assert told.names == ["begin", "end"]


def test_a_cut_stream_goes_on_after_the_last_event_that_it_has() -> None:
    scripts = [sends(LOG[0], LOG[1][:20]), sends(b": ping\n", *LOG[1:], then=ends)]
    with scripted_server(*scripts) as server:
        told = read(server.url)
    first, second = server.requests
    fields = {"prompt": "Hi", "stream": True, "queue_events": True}
    assert json.loads(first.body) == {**fields, "resumable": True}
    assert (second.method, second.path) == ("GET", "/streams/a-stream")
    assert second.headers["last-event-id"] == "0"
    assert told.of("delta") == TEXTS
    assert told.end["numResumes"] == 1


def test_silence_is_a_cut() -> None:
    silent = sends(LOG[0], then=Peer.wait_until_gone)
    with scripted_server(silent, sends(*LOG[1:], then=ends)) as server:
        told = read(server.url, timeout=2000)  # a busy machine may stand still for a while
    assert told.of("delta") == TEXTS
    assert told.of("cut") == [f"Nothing came from {server.url} for 2 seconds."]


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    scripts = [
        sends(LOG[0]),
        answers(b"503 Service Unavailable", more=b"Retry-After: 1\r\n"),
        Peer.close,
        answers(b"502 Bad Gateway"),
        sends(*LOG[1:], then=ends),
    ]
    with scripted_server(*scripts) as server:
        told = read(server.url)
    assert told.of("delta") == TEXTS
    assert told.names == ["begin", "cut", "resume", "end"]


@pytest.mark.parametrize("status", [b"404 Not Found", b"410 Gone"])
def test_a_history_that_is_lost_says_so(status: bytes) -> None:
    with scripted_server(sends(LOG[0]), answers(status, detail="It is gone.")) as server:
        error = read(server.url).error
    assert (error["name"], error["text"], error["numDeltas"]) == ("CutStreamError", "Hé", 1)
    assert error["message"].endswith("The server no longer has the rest: It is gone.")
    assert error["cause"] == "RefusedError"
    assert len(server.requests) == 2  # nothing is cancelled that the server does not have


@pytest.mark.parametrize("status", [b"409 Conflict", b"400 Bad Request", b"204 No Content"])
def test_a_stream_that_cannot_be_resumed_says_why(status: bytes) -> None:
    with scripted_server(sends(LOG[0]), answers(status)) as server:
        error = read(server.url).error
    assert error["name"] == "CutStreamError"
    assert "The stream cannot be resumed: " in error["message"]


def test_a_server_that_does_not_come_back_is_given_up() -> None:
    with scripted_server(sends(LOG[0]), *[Peer.close] * 1000) as server:
        error = read(server.url, resumeTimeout=2000).error
    assert (error["name"], error["text"]) == ("CutStreamError", "Hé")
    assert "It could not be resumed in 2 s." in error["message"]
    assert 5 < len(server.requests) < 1000


def test_a_lost_event_is_an_error_and_ends_the_generation() -> None:
    gap = sends(LOG[0], LOG[2], then=Peer.wait_until_gone)
    with scripted_server(gap, lambda peer: peer.send(whole(b"{}"))) as server:
        told = read(server.url)
        assert [peer.method for peer in server.requests] == ["POST", "DELETE"]
    assert told.of("delta") == ["Hé"]
    assert told.error["name"] == "LostEventError"
    assert "Event 2 arrived instead of event 1." in told.error["message"]


def test_a_stream_that_is_not_resumable_ends_with_its_connection() -> None:
    with scripted_server(sends(LOG[0])) as server:
        told = read(server.url, options={"resumable": False})
    assert "resumable" not in json.loads(server.requests[0].body)
    assert (told.names, told.error["name"]) == (["begin", "error"], "CutStreamError")


# --- refusals and errors


def test_a_refusal_carries_everything_that_the_server_said(server: RunningServer) -> None:
    error = read(server.url, "stream", {"prompt": "Hi", "max_tokens": -1}).error
    assert (error["name"], error["status"], error["code"]) == ("RefusedError", 422, "out_of_range")
    assert error["isPenstockError"] is True
    assert error["detail"] == error["message"] == error["problem"]["detail"]
    assert [each["field"] for each in error["errors"]] == ["max_tokens"]
    assert (error["retrySafe"], error["retryAfterMs"]) == (False, None)
    assert len(error["requestId"]) == 32
    chat = read(server.url, "chat", {"messages": []}).error
    assert (chat["name"], chat["errors"][0]["field"]) == ("RefusedError", "messages")


def test_a_failed_stream_says_why_and_keeps_its_text() -> None:
    failure = {"code": "server_shutdown", "message": "It ended.", "retry_safe": True}
    end = event(1, **{**FINISH, "index": 1, "finish_reason": "error", "error": failure})
    with scripted_server(sends(LOG[0], end, then=ends)) as server:
        error = read(server.url).error
    assert (error["name"], error["code"], error["message"]) == (
        *("FailedStreamError", "server_shutdown"),
        "It ended.",
    )
    assert (error["retrySafe"], error["text"], error["usage"]["total_tokens"]) == (True, "Hé", 6)


def test_a_server_of_another_kind_is_named() -> None:
    page = whole(b"<h1>Welcome</h1>", content_type=b"text/html")
    with scripted_server(lambda peer: peer.send(page)) as server:
        error = read(server.url).error
    assert error["name"] == "UnexpectedAnswerError"
    assert "the type text/html instead of text/event-stream" in error["message"]
    with scripted_server(sends(b"data: {\n\n", then=ends), lambda peer: peer.send(page)) as server:
        assert read(server.url).error["name"] == "UnexpectedAnswerError"


def test_no_server_is_said_at_once() -> None:
    error = read("http://127.0.0.1:1", "generate").error
    assert error["name"] == "ServerUnreachableError"
    assert "http://127.0.0.1:1" in error["message"]


def test_keys_go_into_a_header(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice")
    with serve(engine="mock", mock_interval=0, keys=keys.path) as server:
        assert read(server.url).error["status"] == 401
        told = read(server.url, key=keys.keys["alice"])
        assert read(server.url, "resume", told.end["id"]).error["status"] == 401
        again = read(server.url, "resume", told.end["id"], key=keys.keys["alice"])
        assert again.text == told.text != ""
    assert read("http://127.0.0.1:1", key="nö").error["name"] == "TypeError"


def test_wrong_arguments_are_refused_at_once() -> None:
    assert read("nowhere").error["name"] == "TypeError"
    assert read("http://x", retries=-1).error["name"] == "RangeError"
    assert read("http://x", "stream", {}).error["message"] == "Give either a prompt or messages."
    assert read("http://x", "resume", "id", options={"after": -1}).error["name"] == "RangeError"


# --- retries


@pytest.mark.parametrize("call", ["stream", "generate"])
def test_a_request_is_sent_again_where_that_is_safe(call: str) -> None:
    body = b'{"detail":"Busy.","code":"x","retry_safe":true}'
    busy = whole(body, b"503 Service Unavailable", b"application/problem+json")
    answer = sends(*LOG, then=ends)
    if call == "generate":
        completion = whole(json.dumps(COMPLETION).encode())

        def answer(peer: Peer) -> None:
            peer.send(completion)

    with scripted_server(lambda peer: peer.send(busy), Peer.close, answer) as server:
        end = read(server.url, call, retries=2).end
    assert end["text"] in ("Hi", "".join(TEXTS))
    keys = {peer.headers["idempotency-key"] for peer in server.requests}
    assert len(server.requests) == 3
    assert len(keys) == 1  # so the server does not generate twice


def test_a_request_is_not_sent_again_where_that_is_not_safe_or_too_late() -> None:
    body = b'{"detail":"Busy.","code":"x","retry_safe":true}'
    late = whole(body, b"429 Too Many Requests\r\nRetry-After: 61", b"application/problem+json")
    with scripted_server(lambda peer: peer.send(late)) as server:
        error = read(server.url, retries=5).error
    assert (error["status"], error["retryAfterMs"], error["retrySafe"]) == (429, 61_000, True)
    with scripted_server(answers(b"500 Internal Server Error")) as server:
        assert read(server.url, retries=5).error["retrySafe"] is False


# --- stops


def ended_as(server: RunningServer, told: Told) -> str | None:
    """Return the finish reason of the stream that a program has read."""
    with Client(server.url) as client:
        stream = client.resume(told.of("begin")[0])
        for _ in stream:
            pass
    return stream.finish_reason


def test_a_stream_that_is_cancelled_is_read_to_its_end(server: RunningServer) -> None:
    told = read(server.url, "stream", {"prompt": "End", "max_tokens": 2000}, stops={3: "cancel"})
    assert told.end["finishReason"] == "cancelled"
    assert told.text == numbered("End", len(told.of("delta")))
    assert 3 <= len(told.of("delta")) < 2000


@pytest.mark.parametrize("how", ["break", "close", "abort"])
def test_a_stream_that_is_left_ends_on_the_server(server: RunningServer, how: str) -> None:
    told = read(server.url, "stream", {"prompt": "Left", "max_tokens": 2000}, stops={2: how})
    assert ended_as(server, told) == "cancelled"
    assert len(told.of("delta")) == 2
    if how == "close":
        assert told.error["message"] == "This stream was closed before its end."
    if how == "abort":
        assert told.error["message"] == "enough"


def test_a_stream_that_has_not_begun_can_be_left(server: RunningServer) -> None:
    for how in ("cancel", "close", "abort"):
        told = read(server.url, stops={0: how})
        assert told.names == ["error"]


def test_a_stream_of_another_client_goes_on_when_it_is_left(server: RunningServer) -> None:
    with Client(server.url) as client, client.stream("Ours", max_tokens=50) as stream:
        texts = [next(iter(stream))]
        told = read(server.url, "resume", stream.id, stops={2: "break"})
        texts += list(stream)
    assert told.of("delta") == ["Ours:0 ", "Ours:1 "]
    assert "".join(texts) == numbered("Ours", 50)


def test_a_cancel_between_two_connections_fetches_the_end_at_once() -> None:
    end = event(1, **{**FINISH, "index": 1, "finish_reason": "cancelled"})
    scripts = [sends(LOG[0]), lambda peer: peer.send(whole(b"{}")), sends(end, then=ends)]
    long = {"firstMs": 3_600_000, "maxMs": 3_600_000}
    with scripted_server(*scripts) as server:
        told = read(
            server.url, stops={"cut": "cancel"}, backoff=long, resumeTimeout=4_000_000, timeout=None
        )
        assert [peer.method for peer in server.requests] == ["POST", "DELETE", "GET"]
    assert told.end["finishReason"] == "cancelled"


# --- resuming what exists


def test_a_stream_is_read_by_its_id_from_its_start_or_after_an_event() -> None:
    with scripted_server(sends(LOG[2]), sends(LOG[3], then=ends)) as server:
        told = read(server.url, "resume", "a/b", options={"after": 1})
    assert [peer.path for peer in server.requests] == ["/streams/a%2Fb"] * 2
    assert [peer.headers["last-event-id"] for peer in server.requests] == ["1", "2"]
    assert (told.of("delta"), told.end["finishReason"]) == (TEXTS[2:], "stop")
    with scripted_server(lambda peer: peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")) as server:
        told = read(server.url, "resume", "a", options={"after": 3})
    assert (told.of("delta"), told.end["lastEventId"]) == ([], 3)
    with scripted_server(answers(b"404 Not Found")) as server:
        assert read(server.url, "resume", "a").error["name"] == "RefusedError"


def test_a_server_that_is_away_is_waited_for() -> None:
    scripts = [answers(b"503 Service Unavailable"), Peer.close, sends(*LOG, then=ends)]
    with scripted_server(*scripts) as server:
        told = read(server.url, "resume", "a")
    assert told.names == ["cut", "resume", "end"]
    assert told.of("delta") == TEXTS


# --- what a stream tells besides its text


def test_places_in_the_queue_and_statuses_are_told_as_events_and_comments() -> None:
    frames = [
        b'event: queue\ndata: {"position":2,"eta":1.5}\n\n',
        b": queue position=1\n",
        b'event: status\ndata: {"state":"restarting","tokens":31}\n\n',
        b': status {"state":"generating"}\n',
        b"event: later\ndata: x\n\n",
    ]
    with scripted_server(sends(*frames, *LOG, then=ends)) as server:
        told = read(server.url, statuses=True)
    assert server.requests[0].headers["x-penstock-status"] == "true"
    assert told.of("queue") == [{"position": 2, "eta": 1.5}, {"position": 1, "eta": None}]
    assert told.of("status") == [{"state": "restarting", "tokens": 31}, {"state": "generating"}]
    assert told.of("delta") == TEXTS


def test_characters_are_whole_however_the_bytes_are_split() -> None:
    body = b"".join(LOG)

    def byte_by_byte(peer: Peer) -> None:
        peer.send(HEAD)
        for at in range(len(body)):
            peer.send(chunk(body[at : at + 1]))
        peer.send(END)

    with scripted_server(byte_by_byte) as server:
        assert read(server.url).of("delta") == TEXTS
