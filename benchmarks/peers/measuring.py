"""Measures one server under one load. All servers see the same client and the same steps."""

from benchmarks.overhead.client import (
    BODY_END,
    LOCKSTEP_TOKENS,
    ClientStreams,
    Timing,
    first_token,
    kib_per_stream,
    request,
)
from benchmarks.overhead.server import PinnedServer
from benchmarks.peers.servers import Peer
from benchmarks.report import Numbers, quantile

FIGURES = {
    "tokens_per_second": "tokens/s",
    "cpu_us_per_token": "CPU µs/token",
    "gap_p99_ms": "gap p99, ms",
    "first_p50_ms": "first token p50, ms",
    "first_p99_ms": "first token p99, ms",
    "latency_mean_ms": "step to client mean, ms",
    "latency_p99_ms": "step to client p99, ms",
    "engine_cpu_us_per_token": "CPU µs/token of the engine",
    "cpu_us_per_request": "CPU µs/request",
    "request_p50_ms": "request p50, ms",
    "kib_per_stream": "KiB/stream",
    "ttft_p50_ms": "first token p50, ms",
}
IDLE_STREAMS = 2000
NUM_REQUESTS = 500
WARM_UP_STREAMS, WARM_UP_TOKENS, WARM_UP_REQUESTS = 16, 16, 20
# The first token comes without a step, and the last one with the end of the stream.
NUM_STEPS = LOCKSTEP_TOKENS - 2


def name(figure: str) -> str:
    """Return a figure's name for readers."""
    return FIGURES.get(figure, figure.replace("_", " "))


def lockstep(peer: Peer, server: PinnedServer, num_streams: int, seconds: float) -> Numbers:
    """Measure tokens, with one write for each of them, and first tokens.

    Rounds of `num_streams` answers follow each other until their steps took `seconds` together.
    """
    warm = open_streams(peer, server, WARM_UP_STREAMS, WARM_UP_TOKENS)
    warm.lockstep(server.step, WARM_UP_TOKENS - 2)
    close(warm, server)
    timings: list[Timing] = []
    first: list[float] = []
    cpu = engine_cpu = 0.0
    while sum(each.seconds for each in timings) < seconds:
        streams = open_streams(peer, server, num_streams, LOCKSTEP_TOKENS)
        first += streams.first
        before, engine_before = server.cpu_s(), server.engine_cpu_s()
        timings.append(streams.lockstep(server.step, NUM_STEPS))
        cpu += server.cpu_s() - before
        engine_cpu += server.engine_cpu_s() - engine_before
        close(streams, server)
    tokens = len(timings) * num_streams * NUM_STEPS
    gaps = sorted(gap for each in timings for gap in each.gaps)
    latencies = sorted(latency for each in timings for latency in each.latencies)
    return {
        "tokens_per_second": tokens / sum(each.seconds for each in timings),
        "cpu_us_per_token": 1e6 * cpu / tokens,
        "gap_p99_ms": 1e3 * quantile(gaps, 0.99),
        "first_p50_ms": 1e3 * quantile(first, 0.5),
        "first_p99_ms": 1e3 * quantile(first, 0.99),
        "latency_mean_ms": 1e3 * sum(latencies) / len(latencies),
        "latency_p99_ms": 1e3 * quantile(latencies, 0.99),
        "engine_cpu_us_per_token": 1e6 * engine_cpu / tokens,
    }


def open_streams(peer: Peer, server: PinnedServer, num: int, max_tokens: int) -> ClientStreams:
    """Open streams, and read their first tokens."""
    data = request(peer.path, {"max_tokens": max_tokens, **peer.fields})
    return ClientStreams(server.port, num, data, peer.event_end, eager=True)


def close(streams: ClientStreams, server: PinnedServer) -> None:
    """Read streams to their ends, so that the server has nothing left to do, and close them."""
    streams.finish(server.step)
    streams.close()


def one_token(peer: Peer, server: PinnedServer) -> Numbers:
    """Measure requests for one token, one after another, each on a connection of its own."""
    data = request(peer.path, {"max_tokens": 1, **peer.fields})
    for _ in range(WARM_UP_REQUESTS):
        first_token(server.port, data, BODY_END)
    cpu = server.cpu_s()
    seconds = [first_token(server.port, data, BODY_END) for _ in range(NUM_REQUESTS)]
    cpu = server.cpu_s() - cpu
    return {
        "cpu_us_per_request": 1e6 * cpu / NUM_REQUESTS,
        "request_p50_ms": 1e3 * quantile(seconds, 0.5),
    }


def silent(peer: Peer, server: PinnedServer) -> Numbers:
    """Measure the memory of the server's process for each stream that waits for a token."""
    data = request(peer.path, {"max_tokens": 1024, **peer.fields})
    kib = kib_per_stream(server.port, server.rss, data, IDLE_STREAMS, peer.event_end, eager=True)
    return {"kib_per_stream": kib}
