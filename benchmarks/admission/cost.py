"""What a refused request costs the server, beside one that is answered: processor time.

One connection, one request after the other, so that nothing is shared; the time is that of the
server's process (all its threads), and of the engine's beside it.
"""

import psutil

from benchmarks.hold.report import Figures
from penstock.web.keys import new_key
from tests.support.raw import Connection, generate, open_stream, post, request
from tests.support.servers import RunningServer, serve


async def measure(number: int) -> Figures:
    """So many requests of each kind."""
    key = new_key()
    figures: Figures = {}
    with serve(engine="mock", mock_interval=0, api_key=key) as server:
        answered = with_key(generate(stream=False, max_tokens=1), key)
        wrong = with_key(generate(stream=False, max_tokens=1), "psk_wrong")
        invalid = with_key(post(b'{"prompt":"a","max_tokens":0}'), key)
        figures["answered in one piece, one token"] = cpu_us(server, answered, 200, number)
        figures["refused: no such key (401)"] = cpu_us(server, wrong, 401, number)
        figures["refused: a field out of bounds (422)"] = cpu_us(server, invalid, 422, number)
        health = request("GET", "/health/live")
        figures["for comparison: GET /health/live"] = cpu_us(server, health, 200, number)
    with serve(
        "--slots=1", "--max-queue=0", engine="mock", mock_interval=0, engine_arg=["hang_at=1"]
    ) as server:
        holder, _ = open_stream(server.port, generate())
        with holder:
            full = generate(stream=False, max_tokens=1)
            figures["refused: the line is full (429)"] = cpu_us(server, full, 429, number)
            long = generate("x" * 100_000, stream=False)
            figures["the same with a prompt of 100 KB"] = cpu_us(server, long, 429, number)
    return figures


def with_key(data: bytes, key: str) -> bytes:
    """The same request with a key."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head + f"\r\nAuthorization: Bearer {key}\r\n\r\n".encode() + body


def cpu_us(server: RunningServer, data: bytes, status: int, number: int) -> Figures:
    """Microseconds of processor time for each, in the server and in the engine."""
    processes = [psutil.Process(server.pid), psutil.Process(server.engine_pid())]

    def run(times: int) -> None:
        connection = Connection(server.port)
        for _ in range(times):
            answer = connection.send(data).response()
            assert answer.status == status, answer
            if answer.headers.get("connection") == "close":
                connection.close()
                connection = Connection(server.port)
        connection.close()

    run(number // 10)
    before = [seconds(process) for process in processes]
    run(number)
    spent = [
        round(1e6 * (seconds(process) - ago) / number)
        for process, ago in zip(processes, before, strict=True)
    ]
    return {"server, µs": spent[0], "engine, µs": spent[1]}


def seconds(process: psutil.Process) -> float:
    """Processor time that a process has had."""
    times = process.cpu_times()
    return float(times.user + times.system)
