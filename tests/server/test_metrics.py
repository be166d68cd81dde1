"""The metrics are exact for real clients that end in every possible way."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.support.raw import Connection, ask, cancel_stream, generate, open_stream, post, request
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import RunningServer, serve

BIG_WORDS = "".join(" " + letter * 2000 for letter in "abcdefgh")
NUM_OF_EACH = 4
INTERVAL_S = 0.005
# Clients that read may stand still for so long, and a reader that stalls is found in time.
STALL_S = 2

FLAGS = {
    "engine": "mock",
    "mock_interval": INTERVAL_S,
    "linger": 0.2,
    "engine_arg": [
        *("length=100000", "slots=8", "context_length=200000", "fail_at=1000"),
        f"text={BIG_WORDS}",
    ],
}


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A server with eight slots and tokens of 2 KB; a request fails at its token 1000."""
    with serve(**FLAGS, stall_timeout=STALL_S) as server:
        yield server


@pytest.fixture
def patient() -> Iterator[RunningServer]:
    """A server like `server` that drops no client that stalls, with slower and longer answers."""
    arguments = ["length=100000", "slots=8", "context_length=200000", f"text={BIG_WORDS}"]
    flags = {**FLAGS, "mock_interval": 0.01, "engine_arg": arguments}
    with serve(**flags, stall_timeout=600) as server:
        yield server


def is_settled(scrape: Scrape) -> bool:
    """True if no stream runs or waits, and no reader is left."""
    return (
        scrape("penstock_streams_running")
        + scrape("penstock_streams_waiting")
        + scrape("penstock_readers")
        == 0
    )


def is_told(scrape: Scrape) -> bool:
    """True if the engine has confirmed every abort, and each last send is over.

    Streams that found a stop string were running. Streams that were cancelled or left by their
    clients may have been in the queue, so that the engine never got them.
    """
    left = scrape("penstock_streams_ended_total", cause="client_gone")
    return (
        NUM_OF_EACH <= scrape("penstock_abort_seconds_count") <= 2 * NUM_OF_EACH + left
        and scrape("penstock_e2e_latency_seconds_count") == 3 * NUM_OF_EACH
    )


def check_balance(scrape: Scrape) -> None:
    """Check that started = ended + running + waiting, and that no metric is negative."""
    open_now = scrape("penstock_streams_running") + scrape("penstock_streams_waiting")
    ended = scrape("penstock_streams_ended_total")
    assert scrape("penstock_streams_started_total") == ended + open_now, scrape.text
    assert scrape.negative() == []


class Clients:
    """Clients with one method for each way to end."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.port = server.port

    def length(self) -> None:
        assert ask(self.port, generate(max_tokens=5)).status == 200

    def whole(self) -> None:
        answer = ask(self.port, generate(max_tokens=5, stream=False))
        assert answer.json()["finish_reason"] == "length"

    def stop(self) -> None:
        assert b'"stop"' in ask(self.port, generate(stop=["cccc"])).body

    def error(self) -> None:
        assert b'"mock_failure"' in ask(self.port, generate(max_tokens=1024)).body

    def cancelled(self) -> None:
        connection, stream_id = open_stream(self.port, generate(max_tokens=1024))
        with connection:
            assert cancel_stream(self.port, stream_id) == "cancelled"

    def disconnects(self) -> None:
        connection, _ = open_stream(self.port, generate(max_tokens=1024))
        connection.chunk()
        connection.close()

    def resets_whole(self) -> None:
        Connection(self.port).send(generate(max_tokens=1024, stream=False)).reset()

    def lingers(self) -> None:
        connection, _ = open_stream(self.port, generate(max_tokens=1024, resumable=True))
        connection.close()

    def stalled(self) -> None:
        with Connection(self.port, receive_buffer=4096) as stalled:
            stalled.send(generate(max_tokens=1024))
            assert stalled.head().status == 200
            scrape_until(
                self.server,
                lambda scrape: scrape("penstock_readers_stalled_total") == NUM_OF_EACH,
            )

    def refused(self) -> None:
        assert ask(self.port, generate(max_tokens=0)).status == 422


def test_streams_started_equal_streams_ended_and_open_at_every_moment(
    server: RunningServer,
) -> None:
    clients = Clients(server)
    ways = [
        *(clients.length, clients.whole, clients.stop, clients.error, clients.cancelled),
        *(clients.disconnects, clients.resets_whole, clients.lingers, clients.stalled),
        clients.refused,
    ]
    over = threading.Event()

    def watch() -> int:
        num_scrapes = 0
        while not over.is_set():
            check_balance(Scrape(server))
            num_scrapes += 1
        return num_scrapes

    with ThreadPoolExecutor(len(ways) * NUM_OF_EACH + 1) as threads:
        watching = threads.submit(watch)
        running = [threads.submit(way) for way in ways for _ in range(NUM_OF_EACH)]
        try:
            for each in running:
                each.result()
        finally:
            over.set()
        assert watching.result() > 3
    scrape = scrape_until(server, lambda scrape: is_settled(scrape) and is_told(scrape))
    check_balance(scrape)

    def ended(cause: str, code: str = "") -> float:
        return scrape("penstock_streams_ended_total", cause=cause, code=code)

    n = NUM_OF_EACH
    assert ended("length") == 2 * n
    assert ended("stop") == n
    assert ended("cancelled") == n
    assert ended("error", "mock_failure") == n
    # A client that leaves before its request is read opens no stream.
    gone = ended("client_gone")
    assert 3 * n <= gone <= 4 * n
    assert scrape("penstock_streams_ended_total") == 5 * n + gone
    assert scrape("penstock_readers_stalled_total") == n
    assert scrape("penstock_refusals_total") == n
    assert scrape("penstock_refusals_total", reason="out_of_range") == n
    # Engine and socket count the same answers. Whole answers have no first token at the socket.
    assert scrape("penstock_engine_e2e_latency_seconds_count") == 3 * n
    assert scrape("penstock_e2e_latency_seconds_count") == 3 * n
    engine_sum = scrape("penstock_engine_e2e_latency_seconds_sum")
    assert scrape("penstock_e2e_latency_seconds_sum") >= engine_sum > 0
    first_at_socket = scrape("penstock_time_to_first_token_seconds_count")
    assert 3 * n <= first_at_socket <= scrape("penstock_engine_time_to_first_token_seconds_count")
    assert scrape("penstock_http_requests_total", route="/generate", status="422") == n


def test_a_refusal_by_the_engine_does_not_count_as_an_error(server: RunningServer) -> None:
    """Regression: a client with too long prompts raised `error`, which wakes an operator. Refusals
    now have their own cause."""
    assert ask(server.port, generate("a " * 200_000)).status == 422
    scrape = scrape_until(server, is_settled)
    ended = {"cause": "refused", "code": "prompt_too_long"}
    assert scrape("penstock_streams_ended_total", **ended) == 1
    assert scrape("penstock_streams_ended_total") == 1
    assert scrape("penstock_refusals_total", reason="prompt_too_long") == 1


def test_each_gap_and_send_is_counted_at_both_ends(server: RunningServer) -> None:
    num_tokens = 500
    ask(server.port, generate("one two three", max_tokens=num_tokens))
    scrape = scrape_until(
        server,
        lambda scrape: is_settled(scrape) and scrape("penstock_events_sent_total") > num_tokens,
    )
    assert scrape("penstock_prompt_tokens_total") == 3
    assert scrape("penstock_completion_tokens_total") == num_tokens
    assert scrape("penstock_engine_inter_token_latency_seconds_count") == num_tokens - 1
    assert scrape("penstock_events_sent_total") == num_tokens + 1
    num_sends = scrape("penstock_sends_total")
    assert 1 <= num_sends <= num_tokens + 1
    assert scrape("penstock_delivery_seconds_count") == num_sends
    gaps = scrape("penstock_inter_token_latency_seconds_count")
    # The first send has no gap, and the terminal event may have none.
    assert num_sends - 2 <= gaps <= num_sends - 1
    spoken = scrape("penstock_engine_inter_token_latency_seconds_sum")
    assert spoken == pytest.approx(scrape("penstock_inter_token_latency_seconds_sum"), rel=0.3)
    assert spoken > 0.3 * (num_tokens - 1) * INTERVAL_S  # a busy server gets several at once


def test_gauges_show_the_current_state(patient: RunningServer) -> None:
    held = [open_stream(patient.port, generate(max_tokens=10_000)) for _ in range(10)]
    scrape = scrape_until(patient, lambda scrape: scrape("penstock_streams_running") == 8)
    assert scrape("penstock_streams_waiting") == 2
    assert scrape("penstock_readers") == 10
    assert scrape("penstock_engine_slots") == 8
    scrape_until(patient, lambda scrape: scrape("penstock_readers_blocked") > 0)
    for connection, _ in held:
        connection.close()
    scrape = scrape_until(patient, is_settled)
    assert scrape("penstock_reader_lag_events") == scrape("penstock_reader_lag_max_events") == 0
    # Two streams never had a slot; their waiting time counts too.
    assert scrape("penstock_queue_time_seconds_count") == 10


def test_resumes_are_counted_by_phase(patient: RunningServer) -> None:
    connection, stream_id = open_stream(patient.port, generate(max_tokens=600, resumable=True))
    with connection:
        connection.chunk()
        again, _ = open_stream(patient.port, request("GET", f"/streams/{stream_id}"))
        with again:
            assert list(again.events())[-1]["finish_reason"] == "length"
        connection.rest()
    assert Scrape(patient)("penstock_resumes_total", phase="running") == 1
    assert Scrape(patient)("penstock_streams_kept") == 1
    sent_before = scrape_until(patient, is_settled)("penstock_events_sent_total")
    assert ask(patient.port, request("GET", f"/streams/{stream_id}")).status == 200
    scrape = scrape_until(patient, is_settled)
    assert scrape("penstock_resumes_total", phase="ended") == 1
    assert scrape("penstock_events_sent_total") == sent_before + 601
    # A later reader's waiting does not count as the server's.
    assert scrape("penstock_time_to_first_token_seconds_count") == 1
    assert scrape("penstock_e2e_latency_seconds_count") <= 1


def test_a_killed_engine_is_counted_and_the_balance_holds(server: RunningServer) -> None:
    connection, _ = open_stream(server.port, generate(max_tokens=900))
    with connection:
        connection.chunk()
        psutil.Process(server.engine_pid()).send_signal(signal.SIGKILL)
        assert list(connection.events())[-1]["finish_reason"] == "length"
    scrape = scrape_until(server, is_settled)
    check_balance(scrape)
    assert scrape("penstock_engine_restarts_total") == 1
    assert scrape("penstock_engine_up") == 1
    assert scrape("penstock_completion_tokens_total") == 900


def test_client_input_never_becomes_a_label(server: RunningServer) -> None:
    for path in ("/secret-path", "/streams/secret-id", "/generate?secret=1", "/secret/../x"):
        ask(server.port, request("GET", path))
    ask(server.port, request("SECRET", "/generate"))
    ask(server.port, post(b'{"secret": 1}'))
    ask(server.port, post(b"secret", path="/secret"))
    assert "secret" not in Scrape(server).text.lower()


def test_openmetrics_is_served_on_request(server: RunningServer) -> None:
    accept = "Accept: application/openmetrics-text; version=1.0.0"
    answer = ask(server.port, request("GET", "/metrics", accept))
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")
