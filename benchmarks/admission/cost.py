"""Measures the CPU time of a refused request, compared with an answered request.

Requests go one after another over one connection, so that no work is shared between them. The CPU
time is that of the server's process, and separately that of the engine's process.
"""

import psutil

from benchmarks.admission.asking import generate
from benchmarks.report import Figures, cpu_s
from penstock.web.keys import new_key
from tests.support.raw import Connection, open_stream, request
from tests.support.servers import RunningServer, serve


async def measure(number: int) -> Figures:
    """Send `number` requests of each kind."""
    key = new_key()
    figures: Figures = {}
    with serve(engine="mock", mock_interval=0, api_key=key) as server:
        answered = generate(key, stream=False, max_tokens=1)
        wrong = generate("psk_wrong", stream=False, max_tokens=1)
        invalid = generate(key, max_tokens=0)
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
            long = generate(prompt="x" * 100_000, stream=False)
            figures["the same with a prompt of 100 KB"] = cpu_us(server, long, 429, number)
    return figures


def cpu_us(server: RunningServer, data: bytes, status: int, number: int) -> Figures:
    """Return the CPU time per request in microseconds, in the server and in the engine."""
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
    before = [cpu_s(process) for process in processes]
    run(number)
    spent = [
        round(1e6 * (cpu_s(process) - ago) / number)
        for process, ago in zip(processes, before, strict=True)
    ]
    return {"server, µs": spent[0], "engine, µs": spent[1]}
