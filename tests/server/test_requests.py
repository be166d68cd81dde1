"""Each request has an id, a timing, and one log line: always a JSON object."""

import gzip
import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.support.raw import Connection, Response, ask, generate, open_stream, post, request
from tests.support.servers import RunningServer, serve, start
from tests.support.waiting import eventually

SECRET = "Hunter2"
NEW_ID = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(
        engine="mock", mock_interval=0.01, log_format="json", engine_arg=["length=20"]
    ) as server:
        yield server


def lines_of(server: RunningServer, request_id: str) -> list[dict[str, Any]]:
    """Wait until a request ends, and return its log lines."""

    def found() -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in list(server.output)]
        return [entry for entry in entries if entry.get("request_id") == request_id]

    def has_ended() -> bool:
        return any(entry["message"] == "request ended" for entry in found())

    assert eventually(has_ended), server.output[-5:]
    return found()


def line_of(server: RunningServer, answer: Response) -> dict[str, Any]:
    """Wait until a request ends, and return its only log line."""
    (line,) = lines_of(server, answer.headers["x-request-id"])
    return line


def timing_of(answer: Response) -> dict[str, float]:
    parts = [part.split(";dur=") for part in answer.headers["server-timing"].split(", ")]
    return {name: float(milliseconds) for name, milliseconds in parts}


def test_a_client_with_a_body_that_is_too_large_gets_the_answer(server: RunningServer) -> None:
    """Regression: the server closed the connection while the client was still sending, so most
    clients lost the answer. Now it reads and drops the body first, unless it is far too large."""
    for _ in range(10):
        answer = ask(server.port, post(b"a" * 5_000_000))
        assert (answer.status, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("good", ["a", "trace-1.2_3", "A" * 128])
def test_a_client_s_own_id_comes_back(server: RunningServer, good: str) -> None:
    answer = ask(server.port, request("GET", "/health", f"X-Request-ID: {good}"))
    assert answer.headers["x-request-id"] == good


@pytest.mark.parametrize(
    "bad", ["", "a b", "A" * 129, "a\x1b[31m", "a\u2028b", "<script>", 'a"b', "a,b", "é"]
)
def test_an_id_that_is_not_well_formed_is_replaced(server: RunningServer, bad: str) -> None:
    answer = ask(server.port, request("GET", "/nope", f"X-Request-ID: {bad}"))
    assert answer.status in (400, 404)
    if answer.status == 404:  # otherwise the HTTP library refused the header
        assert NEW_ID.fullmatch(answer.headers["x-request-id"])


def test_two_request_ids_are_replaced_by_a_new_id(server: RunningServer) -> None:
    answer = ask(server.port, request("GET", "/health", "X-Request-ID: a", "X-Request-ID: b"))
    assert NEW_ID.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("GET", "/"), 200),
        (request("GET", "/health/live"), 200),
        (request("GET", "/metrics"), 200),
        (request("GET", "/openapi.json"), 200),
        (request("GET", "/nope"), 404),
        (request("PUT", "/generate"), 405),
        (request("DELETE", "/streams/unknown"), 404),
        (post(b"{"), 400),
        (post(b"{}"), 422),
        (generate(), 200),
        (generate(stream=False), 200),
        (generate().replace(b"Host: localhost", b"Host: @"), 400),
        (request("GET", "/", "Origin: http://x"), 403),
        (request("OPTIONS", "/generate", "Origin: http://a.localhost",
                 "Access-Control-Request-Method: POST"), 400),
    ],
)  # fmt: skip
def test_every_response_has_an_id_and_a_timing(
    server: RunningServer, data: bytes, status: int
) -> None:
    answer = ask(server.port, data)
    assert answer.status == status
    assert NEW_ID.fullmatch(answer.headers["x-request-id"])
    assert all(milliseconds >= 0 for milliseconds in timing_of(answer).values())


def test_a_whole_answer_says_where_its_time_went(server: RunningServer) -> None:
    answer = ask(server.port, generate(stream=False, max_tokens=10))
    timing = timing_of(answer)
    timings = answer.json()["timings"]
    assert [*timing] == ["queue", "prefill", "decode", "total"]
    first, whole = timings["time_to_first_token"], timings["total_time"]
    assert timing["queue"] == pytest.approx(1000 * timings["queue_time"], abs=0.01)
    assert timing["prefill"] == pytest.approx(1000 * (first - timings["queue_time"]), abs=0.01)
    assert timing["decode"] == pytest.approx(1000 * (whole - first), abs=0.01)
    assert timing["total"] >= 1000 * whole - 0.01
    # A server that stands still meanwhile sees all tokens at once.
    assert timing["decode"] > 0


def test_a_stream_s_head_says_only_what_is_known_then(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        head = connection.send(generate(max_tokens=10)).head()
        assert [*timing_of(head)] == ["admission"]
        assert list(connection.events())[-1]["timings"]["total_time"] > 0


def test_the_log_line_of_a_stream_has_its_numbers(server: RunningServer) -> None:
    answer = ask(server.port, generate("one two", max_tokens=5))
    end = json.loads(answer.body.rstrip().rpartition(b"data: ")[2])
    line = line_of(server, answer)
    assert line["message"] == "request ended"
    assert line["level"] == "info"
    assert (line["method"], line["route"], line["status"]) == ("POST", "/generate", 200)
    assert line["client"] == "127.0.0.1"
    assert line["stream_id"] == answer.headers["x-stream-id"]
    assert (line["finish_reason"], line["prompt_tokens"], line["completion_tokens"]) == (
        *("length", 2),
        5,
    )
    assert line["queue_s"] == end["timings"]["queue_time"]
    assert line["ttft_s"] == end["timings"]["time_to_first_token"]
    assert line["total_s"] == end["timings"]["total_time"] <= line["duration_s"]
    assert (line["readers"], line["resumed"]) == (1, False)
    assert "error_code" not in line
    assert "prompt" not in line


def test_a_client_that_leaves_has_a_log_line(server: RunningServer) -> None:
    with Connection(server.port) as connection:
        head = connection.send(generate(max_tokens=5000, ignore_eos=True)).head()
        connection.chunk()
    line = line_of(server, head)
    assert (line["finish_reason"], line["client_gone"]) == ("cancelled", True)


def test_each_resume_has_a_log_line(server: RunningServer) -> None:
    first, stream_id = open_stream(server.port, generate(resumable=True))
    with first:
        first.chunk()
    answer = ask(server.port, request("GET", f"/streams/{stream_id}?after=0"))
    line = line_of(server, answer)
    assert (line["route"], line["stream_id"]) == ("/streams/{stream_id}", stream_id)
    assert (line["resumed"], line["readers"]) == (True, 2)
    assert line["finish_reason"] == "stop"


def test_the_log_line_of_a_problem_has_its_code(server: RunningServer) -> None:
    line = line_of(server, ask(server.port, generate(max_tokens=0)))
    assert (line["status"], line["error_code"], line["route"]) == (422, "out_of_range", "/generate")
    line = line_of(server, ask(server.port, request("GET", "/nope")))
    assert (line["status"], line["error_code"], line["route"]) == (404, "no_such_route", "none")


def test_successful_probes_are_not_logged(server: RunningServer) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics"):
        ask(server.port, request("GET", path, "X-Request-ID: probe"))
    line_of(server, ask(server.port, request("GET", "/nope")))  # earlier requests are logged by now
    assert not any("probe" in line for line in server.output)


HOSTILE = [
    f"{SECRET}\r\nINFO forged",
    f"{SECRET}\x1b[2J\x07",
    f"{SECRET}\x00",
    f"{SECRET}\u2028\u2029\x85",
    f'{SECRET}"}}',
    f"{SECRET} " * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_each_log_line_is_one_json_object_without_client_input(
    server: RunningServer, text: str
) -> None:
    printable = "".join(char for char in text[:1000] if char.isalnum())
    requests = [
        generate(text, max_tokens=1),
        generate(text, max_tokens=1, stream=False),
        generate(max_tokens=text),
        generate(stop=[text]),
        post(json.dumps({text[:1000]: 1}).encode()),
        post(json.dumps({"messages": [{"role": "user", "content": text}]}).encode()),
        post(text.encode("utf-8", "surrogatepass")),
        post(b"{}", f"Content-Type: {printable}"),
        request("GET", f"/{printable}?{printable}={printable}"),
        request("DELETE", f"/streams/{printable}"),
        request("GET", f"/streams/x?after={printable}"),
        request("GET", "/", f"X-Request-ID: {printable} {printable}", f"User-Agent: {printable}"),
        request("GET", "/", f"Authorization: Bearer {printable}", f"Cookie: {printable}"),
        request("GET", "/nope", f"Authorization: Bearer {printable}", f"Referer: {printable}"),
        request("GET", "/health", f"Host: {printable}"),
    ]
    for each in requests:
        ask(server.port, each)
    line_of(server, ask(server.port, request("GET", "/nope")))
    for line in list(server.output):
        assert isinstance(json.loads(line), dict)
        assert line.isascii()
        assert line.rstrip("\n").isprintable()
        assert len(line) <= 8192
        assert SECRET not in line


def test_prompts_are_logged_only_on_request() -> None:
    with serve(
        "--log-prompts", engine="mock", mock_interval=0, log_format="json", stall_timeout=2
    ) as server:
        line = line_of(server, ask(server.port, generate("the prompt\r\n\x1b[2J", max_tokens=1)))
        assert line["prompt"] == "the prompt\r\n\x1b[2J"
        turns = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hello?"}]
        body = json.dumps({"messages": turns, "stream": False}).encode()
        assert (
            line_of(server, ask(server.port, post(body)))["prompt"] == "system: Be.\nuser: Hello?"
        )
        line = line_of(server, ask(server.port, generate("\x00" * 5000, max_tokens=1)))
        assert line["prompt"].startswith("\x00" * 500)
        assert line["finish_reason"] == "length"


def test_a_server_that_cannot_start_says_so_in_json_too() -> None:
    process = start(engine="mock", log_format="json", engine_arg=["intervall=1"])
    _, output = process.communicate(timeout=60)
    assert process.returncode == 1
    entries = [json.loads(line) for line in output.splitlines()]
    assert entries[-1]["level"] == "critical"
    assert "intervall" in entries[-1]["message"]
    assert "interval" in entries[-1]["hint"]


def test_every_line_of_a_server_s_life_is_json() -> None:
    long = ["length=1000"]
    with serve(engine="mock", mock_interval=0.01, log_format="json", engine_arg=long) as server:
        connection, _ = open_stream(server.port, generate(max_tokens=300))  # three seconds
        with connection:
            psutil.Process(server.engine_pid()).send_signal(signal.SIGKILL)
            assert list(connection.events())[-1]["finish_reason"] == "length"
        assert server.has_said("restarting")
    entries = [json.loads(line) for line in server.output]
    messages = [entry["message"] for entry in entries]
    assert messages[0] == "serving"
    assert any("restarting" in message for message in messages)


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_log_that_nobody_reads_holds_up_neither_answers_nor_the_end(log_format: str) -> None:
    process = start(engine="mock", mock_interval=0, log_format=log_format)
    assert process.stderr is not None
    line = ""
    while not (found := re.search(r"http://127.0.0.1:([0-9]+)", line)):
        line = process.stderr.readline()
    for _ in range(500):  # more lines than a pipe holds
        assert ask(int(found[1]), generate(max_tokens=1, stream=False)).status == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    process.stderr.close()


def test_the_log_for_people_has_a_line_per_request_too() -> None:
    with serve(engine="mock", mock_interval=0) as server:
        ask(server.port, generate("secret", max_tokens=3))
    (line,) = [line for line in server.output if "penstock.request" in line]
    assert line.startswith("INFO penstock.request: request ended method=POST route=/generate ")
    assert " finish_reason=length " in line
    assert "secret" not in line


BODY = b'{"prompt":"a b","max_tokens":2,"stream":false}'
GZIP = "Content-Encoding: gzip"


def test_a_compressed_body_is_read(server: RunningServer) -> None:
    answer = ask(server.port, post(gzip.compress(BODY), GZIP))
    assert answer.json()["usage"]["prompt_tokens"] == 2
    assert ask(server.port, post(BODY, "Content-Encoding: identity")).status == 200


# Programs that declare nothing, and `curl -d`. A page in a browser can send both, to any server.
UNDECLARED = [[], ["Content-Type: application/x-www-form-urlencoded"]]


def undeclared(lines: list[str], *more: str) -> bytes:
    length = f"Content-Length: {len(BODY)}"
    return request("POST", "/generate", length, *lines, *more) + BODY


@pytest.mark.parametrize("lines", UNDECLARED, ids=["nothing", "curl -d"])
def test_a_body_that_is_not_declared_is_json_unless_a_browser_sent_it(
    server: RunningServer, lines: list[str]
) -> None:
    assert ask(server.port, undeclared(lines)).json()["usage"]["prompt_tokens"] == 2
    answer = ask(server.port, undeclared(lines, f"Origin: http://127.0.0.1:{server.port}"))
    assert answer.status == 415
    assert answer.json()["code"] == "unsupported_media_type"


def test_strict_asks_each_body_to_be_declared() -> None:
    with serve("--strict", engine="mock") as server:
        assert [ask(server.port, undeclared(lines)).status for lines in UNDECLARED] == [415, 415]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (gzip.compress(BODY)[:-4], 400, "invalid_gzip"),
        (gzip.compress(BODY) + b"x", 400, "invalid_gzip"),
        (BODY, 400, "invalid_gzip"),
        (b"", 400, "invalid_gzip"),
        (gzip.compress(b"[" + b"0," * 2**22 + b"0]"), 413, "body_too_large"),
    ],
    ids=["cut", "with more behind it", "not compressed", "empty", "a bomb"],
)
def test_a_body_that_is_compressed_badly_is_refused(
    server: RunningServer, sent: bytes, status: int, code: str
) -> None:
    answer = ask(server.port, post(sent, GZIP))
    assert (answer.status, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zqxj"])
def test_another_coding_is_refused_with_the_one_that_is_read(
    server: RunningServer, coding: str
) -> None:
    answer = ask(server.port, post(BODY, f"Content-Encoding: {coding}"))
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "gzip"
