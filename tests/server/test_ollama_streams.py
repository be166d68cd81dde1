"""Streams of Ollama's API: resume, cancel, the engine's death, signs of life, and its own port."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest

from penstock.errors import StartError
from penstock.server import check_ollama
from penstock.settings import load_settings
from penstock.web.keys import key_table, new_key
from tests.support import ports
from tests.support.dying import mortal
from tests.support.lethal import TARGET as LETHAL
from tests.support.ollama_wire import (
    CHAT,
    GENERATE,
    HELLO,
    answer_to,
    asks,
    client_of,
    close_clients,
    joined,
    lines_of,
)
from tests.support.openai_wire import RESUMABLE
from tests.support.raw import Connection, Response, ask, cancel_stream, request, resume
from tests.support.scraped import scrape_until
from tests.support.servers import RunningServer, serve
from tests.support.templates import REASONING

ENGINE = "tests.support.scripted_answer:ScriptedAnswer"
TOOL = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module", autouse=True)
def _closed_clients() -> Iterator[None]:
    yield
    close_clients()


@pytest.fixture(scope="module")
def hanging() -> Iterator[RunningServer]:
    """A server with one slot, whose answers hang after three tokens."""
    arguments = ["hang_at=3", "slots=1"]
    with serve(
        engine="mock", mock_interval=0, max_queue=1, model_name="rill", engine_arg=arguments
    ) as running:
        yield running


def begin(
    server: RunningServer, *headers: str, num_lines: int = 1
) -> tuple[Connection, str, bytes]:
    """Begin a stream and read its first lines. Returns the connection, the id and the body."""
    connection = Connection(server.port).send(asks(*headers))
    head = connection.head()
    assert head.status == 200
    body = b""
    while body.count(b"\n") < num_lines:
        body += connection.chunk()
    return connection, head.headers["x-stream-id"], body


def text_of(body: bytes) -> str:
    message = joined(lines_of(body))
    return str(message["thinking"] + message["content"])


# Resume and cancel.


@pytest.mark.parametrize("path", [CHAT, GENERATE])
def test_a_stream_is_resumed_byte_for_byte_from_every_line(path: str) -> None:
    tools = {"tools": [TOOL]} if path == CHAT else {}
    with serve(engine=ENGINE, model_name="rill") as server:
        answer = answer_to(server, RESUMABLE, path=path, **tools)
        lines = answer.body.splitlines(keepends=True)
        assert len(lines) == (7 if path == CHAT else 5)
        stream_id = answer.headers["x-stream-id"]
        for number in range(len(lines)):
            rest = resume(server.port, stream_id, f"Last-Event-ID: {number}")
            assert rest.body == b"".join(lines[number + 1 :])
            assert rest.status == (204 if number == len(lines) - 1 else 200)
        whole = ask(server.port, request("GET", f"/streams/{stream_id}"))
        assert whole.body == answer.body
        assert whole.headers["content-type"] == "application/x-ndjson"
        assert resume(server.port, stream_id, f"Last-Event-ID: {len(lines)}").status == 400


def test_a_running_stream_is_resumed_and_cancelled(hanging: RunningServer) -> None:
    # All lines that there are: the cancel may overtake those that nobody has read.
    connection, stream_id, body = begin(hanging, RESUMABLE, num_lines=3)
    with connection:
        late: list[Response] = []
        reader = threading.Thread(
            target=lambda: late.append(resume(hanging.port, stream_id, "Last-Event-ID: 0"))
        )
        reader.start()
        assert cancel_stream(hanging.port, stream_id) == "cancelled"
        body += connection.rest()
        reader.join()
    assert late[0].body.strip() == b"".join(body.splitlines(keepends=True)[1:]).strip()
    last = lines_of(body)[-1]
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "cancelled", 3)


def test_a_stream_whose_client_leaves_is_cancelled(hanging: RunningServer) -> None:
    connection, _, _ = begin(hanging)
    connection.close()
    second, _, _ = begin(hanging)  # there is one slot
    second.close()


# The engine's death, failures and silence.


def test_text_and_thinking_go_on_after_the_engine_s_death(tmp_path: Path) -> None:
    body = asks(options={"temperature": 0, "num_predict": 60})
    with mortal(tmp_path, f"chat_template={REASONING}", model_name="rill") as server:
        whole, cut = server.undisturbed(body).body, server.cut_off(body).body
    assert text_of(cut) == text_of(whole) != ""
    ends = [lines_of(each)[-1] for each in (whole, cut)]
    assert ends[0]["eval_count"] == ends[1]["eval_count"] == 60


def test_a_failure_is_the_last_line_and_ollama_s_client_raises_it() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg="fail_at=2", model_name="rill") as server:
        lines = lines_of(answer_to(server).body)
        assert [line.get("done") for line in lines] == [False, False, None]
        assert lines[-1]["code"] == "mock_failure"
        client = client_of(server)
        with pytest.raises(ollama.ResponseError, match="told to fail"):
            list(client.chat("rill", HELLO, stream=True))
        with pytest.raises(ollama.ResponseError, match="told to fail") as failed:
            client.chat("rill", HELLO)
        assert failed.value.status_code == 500


def test_white_space_keeps_a_silent_stream_alive(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    arguments = [f"folder={tmp_path}", "interval=0", "length=2"]
    gated = asks(messages=[{"role": "user", "content": "gated"}])

    def silence(connection: Connection) -> bytes:
        """Return what a stream without a token sends."""
        sent = b""
        while len(sent) < 4:
            sent += connection.chunk()
        assert sent == b" " * len(sent)
        return sent

    with (
        serve(engine=LETHAL, heartbeat=0.02, engine_arg=arguments, model_name="rill",
              slots=1) as server,
        Connection(server.port).send(gated) as first,
    ):  # fmt: skip
        assert first.head().status == 200
        body = silence(first)
        lines: list[Any] = []
        client = client_of(server)
        waiting = threading.Thread(
            target=lambda: lines.extend(client.chat("rill", HELLO, stream=True))
        )
        waiting.start()
        scrape_until(server, lambda scrape: scrape("penstock_streams_waiting") == 1)
        body += silence(first)  # so the next one has waited in the queue, and was told only that
        gate.unlink()
        body += first.rest()
        waiting.join()
    texts = [line["message"]["content"] for line in lines_of(body)]
    assert texts == ["gated:0 ", "gated:1 ", ""]
    assert joined(lines)["content"] == "Hello:0 Hello:1 "


def test_a_full_queue_may_be_asked_again(hanging: RunningServer) -> None:
    first, _, _ = begin(hanging)
    with first, Connection(hanging.port).send(asks()) as second:
        assert second.head().status == 200
        answer = answer_to(hanging)
        assert (answer.status, answer.json()["code"]) == (429, "queue_full")
        assert answer.json()["retry_safe"] is True
        assert answer.headers["x-should-retry"] == "true"


def test_a_key_is_needed_and_owns_its_streams(tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("ann", "bob")}
    table = "\n".join(key_table(name, key, is_admin=False) for name, key in keys.items())
    (tmp_path / "keys.toml").write_text(table)
    ann, bob = (f"Authorization: Bearer {keys[name]}" for name in ("ann", "bob"))
    with serve(engine="mock", mock_interval=0, keys=tmp_path / "keys.toml",
               model_name="rill") as server:  # fmt: skip
        assert answer_to(server).status == 401
        assert set(answer_to(server).json()) == {"error", "code", "retry_safe"}
        for path in ("tags", "ps", "version"):
            assert ask(server.port, request("GET", f"/api/{path}")).status == 401
        answer = answer_to(server, RESUMABLE, ann)
        assert answer.status == 200
        stream_id = answer.headers["x-stream-id"]
        assert ask(server.port, request("GET", f"/streams/{stream_id}", bob)).status == 404
        assert ask(server.port, request("GET", f"/streams/{stream_id}", ann)).body == answer.body


# Ollama's own port.


@pytest.fixture
def free_port(monkeypatch: pytest.MonkeyPatch) -> int:
    port = ports.free_port()
    monkeypatch.setenv("OLLAMA_PORT", str(port))
    return port


def ollama_server(**flags: Any) -> Any:
    return serve("--ollama", module="tests.support.ollama_port", engine="mock", mock_interval=0,
                 model_name="rill", **flags)  # fmt: skip


def test_ollama_s_clients_find_the_server_at_their_port(free_port: int) -> None:
    with ollama_server(max_connections=8) as server:
        assert server.has_said(f"http://127.0.0.1:{free_port}")
        here = f"Host: localhost:{free_port}"
        with Connection(free_port) as connection:
            connection.send(b"HEAD / HTTP/1.1\r\n%b\r\n\r\n" % here.encode())
            assert connection.head().status == 200
        with Connection(free_port) as connection:
            connection.send(b"GET / HTTP/1.1\r\n%b\r\n\r\n" % here.encode())
            assert connection.response().body == b"Ollama is running"
        with ollama.Client(f"http://127.0.0.1:{free_port}") as client:
            said = client.chat("rill", HELLO).message.content
        assert said == answer_to(server, stream=False).json()["message"]["content"]
        greeting = ask(server.port, request("GET", "/")).json()
        assert greeting["message"] == "Penstock is running"
        # Both ports share the connections: an address may have seven eighths.
        held = [Connection(port) for port in (free_port, server.port) * 3]
        for connection in held:
            connection.send(request("GET", "/health/live"))
            assert connection.response().status == 200
        for connection in held:
            connection.close()
    with pytest.raises(ConnectionRefusedError):
        Connection(free_port)


def test_a_taken_port_is_no_reason_not_to_serve(free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)), ollama_server() as server:
        assert server.has_said(f"Ollama's port {free_port}")
        assert answer_to(server, stream=False).status == 200


def test_the_server_s_own_port_may_be_ollama_s(free_port: int) -> None:
    with ollama_server(port=free_port) as server:
        assert server.port == free_port
        here = f"Host: localhost:{free_port}"
        with Connection(free_port) as connection:
            connection.send(b"GET / HTTP/1.1\r\n%b\r\n\r\n" % here.encode())
            assert connection.response().body == b"Ollama is running"


@pytest.mark.parametrize("setting", [{"http2": True}, {"tls_cert": "a.pem", "tls_key": "a.key"}])
def test_ollama_s_port_is_plain_http(setting: dict[str, Any]) -> None:
    with pytest.raises(StartError, match=r"plain HTTP/1\.1"):
        check_ollama(load_settings(ollama=True, **setting))


def test_no_text_ends_a_line() -> None:
    """Ollama's Python client takes these characters for line ends if they are not escaped."""
    text = 'a\u2028 b\u2029 \x85c "d" \\e\n <f> é☃'
    with serve(engine="mock", mock_interval=0, engine_arg=[f"text={json.dumps(text)}"],
               model_name="rill") as server:  # fmt: skip
        client = client_of(server)
        lines = list(client.generate("rill", "Hello", stream=True))
        assert "".join(line.response for line in lines) == text
        assert len(lines) == 8
        assert client.generate("rill", "Hello").response == text
