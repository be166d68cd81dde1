"""Holds a crowd of streams at once: silent ones, then ones with a steady rate of tokens.

First, streams without a token show what a silent stream costs in memory. Then other streams get
`rate` tokens per second each for some minutes, in ten groups out of phase. A client in this process
counts the events of each stream. A stream is whole if it has every token and its terminal event.
"""

import re
import select
import socket
import time

from benchmarks.overhead.client import PATIENCE_S, kib_per_stream, request
from benchmarks.overhead.server import penstock_server
from benchmarks.report import Figures
from penstock.server import raise_file_limit

DELTA = b'"finished":false'
END = re.compile(rb'"finish_reason":"(\w+)"')
SILENT_TOKENS = 1024
MAX_END_BYTES = 1024


async def measure(silent: int, streams: int, rate: float, minutes: float) -> Figures:
    """Hold `silent` streams, then `streams` streams at `rate` tokens per second."""
    raise_file_limit()
    figures: Figures = {"silent_streams": silent}
    with penstock_server("Ticking", rate=0) as server:
        data = request("/generate", {"max_tokens": SILENT_TOKENS})
        kib = kib_per_stream(server.port, server.rss, data, silent)
        figures["kib_per_silent_stream"] = round(kib, 2)
    num_tokens = round(rate * minutes * 60)
    with penstock_server("Ticking", rate=rate) as server:
        began, cpu = time.monotonic(), server.cpu_s()
        data = request("/generate", {"max_tokens": num_tokens})
        sockets = _opened(server.port, streams, data)
        counts, ends = _read_to_end(sockets, num_tokens / rate)
        cpu = server.cpu_s() - cpu
        took = time.monotonic() - began
    num_whole = sum(ends.get(each) == "length" and counts[each] == num_tokens for each in sockets)
    figures |= {
        "streams_at_once": streams,
        "tokens_per_second_each": rate,
        "minutes": round(took / 60, 2),
        "tokens": sum(counts.values()),
        "whole_streams": num_whole,
        "server_cpu_us_per_token": round(cpu / sum(counts.values()) * 1e6, 2),
        "breaches": streams - num_whole,
    }
    return figures


def _opened(port: int, num: int, data: bytes) -> dict[int, socket.socket]:
    """Open connections and send a request on each; return them by their descriptors."""
    sockets = {}
    for index in range(num):
        connection = socket.socket()
        # One source address has too few ports for many thousands of streams.
        connection.bind((f"127.0.0.{2 + index // 20_000}", 0))
        connection.connect(("127.0.0.1", port))
        connection.sendall(data)
        connection.setblocking(False)
        sockets[connection.fileno()] = connection
    return sockets


def _read_to_end(
    sockets: dict[int, socket.socket], seconds: float
) -> tuple[dict[int, int], dict[int, str]]:
    """Return how many deltas each stream had, and how it ended, by its socket."""
    poll = select.epoll()
    for descriptor in sockets:
        poll.register(descriptor, select.EPOLLIN)
    counts = dict.fromkeys(sockets, 0)
    rests = dict.fromkeys(sockets, b"")
    ends: dict[int, str] = {}
    deadline = time.monotonic() + seconds + 2 * PATIENCE_S
    while len(ends) < len(sockets) and time.monotonic() < deadline:
        for descriptor, _ in poll.poll(PATIENCE_S):
            piece = sockets[descriptor].recv(65536)
            whole, mark, rest = (rests[descriptor] + piece).rpartition(DELTA)
            counts[descriptor] += whole.count(DELTA) + bool(mark)
            rests[descriptor] = rest[-MAX_END_BYTES:]
            found = END.search(rest)
            if found is not None or not piece:
                ends[descriptor] = found[1].decode() if found is not None else "cut"
                poll.unregister(descriptor)
    for connection in sockets.values():
        connection.close()
    return counts, ends
