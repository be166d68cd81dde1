"""Clients that do not read, read slowly or send nothing, and heartbeats of silent streams."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import pytest
import requests

from tests.support.raw import Connection, ask, generate, open_stream
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

STALL_TIMEOUT_S = 2.0
REAPED_WITHIN_S = 15 * STALL_TIMEOUT_S  # a machine may be busy; without a timeout, it is never
BIG_WORDS = "".join(" " + letter * 2000 for letter in "abcdefgh")


@pytest.fixture(scope="module")
def torrent() -> Iterator[RunningServer]:
    """A server with one slot and tokens of 2 KB, as fast as it can: 2 MB for 1,024 tokens."""
    with serve(
        "--http2",
        engine="mock",
        mock_interval=0,
        stall_timeout=STALL_TIMEOUT_S,
        engine_arg=["length=100000", "slots=1", "context_length=200000", f"text={BIG_WORDS}"],
    ) as server:
        yield server


def wait_for_the_slot(server: RunningServer) -> float:
    """Send a short request; return the seconds until it has had the only slot."""
    began = time.monotonic()
    assert ask(server.port, generate(max_tokens=1, stream=False)).status == 200
    return time.monotonic() - began


def test_a_client_that_never_reads_is_dropped_in_time_and_held_little(
    torrent: RunningServer,
) -> None:
    with Connection(torrent.port, receive_buffer=4096) as stalled:
        stalled.send(generate(max_tokens=1024, resumable=True))
        assert stalled.head().status == 200
        # The stream is resumable, so its log goes on: only the reader is dropped.
        assert eventually(
            lambda: Scrape(torrent)("penstock_readers_stalled_total") == 1, REAPED_WITHIN_S
        )
        chunks = stalled.chunks()
        held = b""
        with contextlib.suppress(EOFError):
            for chunk in chunks:
                held += chunk
            pytest.fail("the body came to an end, though it was cut")
    assert b'"finished":true' not in held
    assert len(held) < 256 * 1024


def test_a_stalled_client_s_slot_is_free_for_others(torrent: RunningServer) -> None:
    with Connection(torrent.port, receive_buffer=4096) as stalled:
        stalled.send(generate(max_tokens=1024))
        assert stalled.head().status == 200
        assert wait_for_the_slot(torrent) < REAPED_WITHIN_S


def test_a_stalled_http2_stream_is_ended_and_its_slot_free(torrent: RunningServer) -> None:
    body = json.dumps({"prompt": "x", "max_tokens": 1024}).encode()
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(
        1,
        [
            (":method", "POST"),
            (":path", "/generate"),
            (":authority", "localhost"),
            (":scheme", "http"),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
        ],
    )
    client.send_data(1, body, end_stream=True)
    with socket.create_connection(("127.0.0.1", torrent.port)) as connection:
        connection.settimeout(REAPED_WITHIN_S)
        connection.sendall(client.data_to_send())
        held = 0
        while held < 65535:  # all that the window allows; it is never opened again
            for event in client.receive_data(connection.recv(65536)):
                if isinstance(event, h2.events.DataReceived):
                    held += len(event.data)
        assert wait_for_the_slot(torrent) < REAPED_WITHIN_S


def test_a_client_that_reads_slowly_is_not_dropped(torrent: RunningServer) -> None:
    """The client reads for more than two timeouts, and takes each piece well within one."""
    with Connection(torrent.port, receive_buffer=16 * 1024) as slow:
        slow.send(generate(max_tokens=300))  # 600 KB
        assert slow.head().status == 200
        ended = False
        started = time.monotonic()
        body = b""
        while not ended:
            chunk = slow.chunk()
            ended = not chunk
            body += chunk
            time.sleep(len(chunk) / 80_000)
        assert time.monotonic() - started > 2 * STALL_TIMEOUT_S
    assert body.count(b'"finished":false') == 300
    assert b'"finish_reason":"length"' in body


def test_silence_is_filled_with_comments_before_the_first_token_and_later() -> None:
    with serve(engine="mock", mock_interval=1.5, heartbeat=0.05, engine_arg=["prefill=1"]) as s:
        connection, _ = open_stream(s.port, generate(max_tokens=2, resumable=True))
        with connection:
            body = connection.rest()
    first, second, end = body.rstrip(b"\n").split(b"\n\n")
    for frame in (first, second):
        assert frame.startswith(b": ping\n: ping\n")
        comments, data = frame.split(b"id: ")
        assert set(comments.split(b"\n")) == {b": ping", b""}
        assert b"\n\n" not in comments
        assert json.loads(data.split(b"data: ")[1])["finished"] is False
    assert b'"finished":true' in end


def test_five_hundred_silent_connections_keep_nobody_out() -> None:
    with serve(engine="mock", mock_interval=0) as server, contextlib.ExitStack() as stack:
        for number in range(500):
            silent = stack.enter_context(Connection(server.port))
            if number % 2:
                silent.send(b"POST /generate HTTP/1.1\r\nHost: x")
        answer = requests.get(f"{server.url}/health", timeout=REAPED_WITHIN_S)
        assert answer.status_code == 200
        assert ask(server.port, generate(max_tokens=1, stream=False)).status == 200
