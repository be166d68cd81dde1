"""Holds a crowd of streams at once: silent ones, then ones with a steady rate of tokens.

First, streams without a token show what a silent stream costs in memory. Then other streams get
`rate` tokens per second each for some minutes, in ten groups out of phase. A client in this process
counts the events of each stream. A stream is whole if it has every token and its terminal event.
"""

import re
import select
import socket
import time

from benchmarks.overhead.client import PATIENCE_S, request
from benchmarks.overhead.server import penstock_server
from benchmarks.report import Figures
from penstock.server import raise_file_limit

DELTA = b'"finished":false'
END = re.compile(rb'"finish_reason":"(\w+)"')
SILENT_TOKENS = 1024
# Requests that arrive all at once need more memory for a moment, and the process keeps it.
OPENED_AT_ONCE = 50
WARM_STREAMS = 500
MAX_END_BYTES = 1024


async def measure(silent: int, streams: int, rate: float, minutes: float) -> Figures:
    """Hold `silent` streams, then `streams` streams at `rate` tokens per second."""
    raise_file_limit()
    figures: Figures = {"silent_streams": silent}
    with penstock_server("Ticking", rate=0) as server:
        data = request("/generate", {"max_tokens": SILENT_TOKENS})
        warm = _opened(server.port, WARM_STREAMS, data)
        before = server.rss()
        held = _opened(server.port, silent, data)
        grown = server.rss() - before
        figures["kib_per_silent_stream"] = round(grown / silent / 1024, 2)
        _close(warm)
        _close(held)
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
    """Open streams, some at once, until each has its head; return them by their descriptors."""
    sockets: dict[int, socket.socket] = {}
    while len(sockets) < num:
        opening = []
        for _ in range(min(OPENED_AT_ONCE, num - len(sockets))):
            connection = socket.socket()
            # One source address has too few ports for many thousands of streams.
            connection.bind((f"127.0.0.{2 + len(sockets) // 20_000}", 0))
            connection.connect(("127.0.0.1", port))
            connection.sendall(data)
            sockets[connection.fileno()] = connection
            opening.append(connection)
        for connection in opening:
            connection.recv(1, socket.MSG_PEEK)
            connection.setblocking(False)
    return sockets


def _close(sockets: dict[int, socket.socket]) -> None:
    for connection in sockets.values():
        connection.close()


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
    _close(sockets)
    return counts, ends
