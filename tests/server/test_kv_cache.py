"""The share of the KV cache in use: exact for an engine that says how many tokens have room."""

import contextlib

import pytest

from tests.support.raw import generate, open_stream
from tests.support.scraped import Scrape, scrape_until
from tests.support.servers import serve

RATIO = "penstock_kv_cache_usage_ratio"


def num_tokens(scrape: Scrape) -> float:
    """Return how many tokens all streams have had so far, in prompts and answers."""
    return scrape("penstock_prompt_tokens_total") + scrape("penstock_completion_tokens_total")


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ({"slots": 2, "context": 512}, 1024),
        # All slots share one context.
        ({"slots": 2, "engine_arg": ["kv_unified=true", "n_ctx=512"]}, 512),
    ],
    ids=["a context for each slot", "one context"],
)
def test_it_is_the_share_of_the_running_streams_tokens_in_llama_cpp_s_contexts(
    flags: dict[str, object], size: int
) -> None:
    with serve(pace=20, **flags) as server:
        assert Scrape(server)(RATIO) == 0
        connection, _ = open_stream(server.port, generate("Once upon a time", max_tokens=200))
        with connection:
            next(connection.events())
            scrape = Scrape(server)
            assert scrape("penstock_streams_running") == 1
            assert num_tokens(scrape) > 2
            assert scrape(RATIO) == pytest.approx(num_tokens(scrape) / size)
        scrape_until(server, lambda scrape: scrape(RATIO) == 0)


def test_running_streams_count_with_their_prompts_and_waiting_ones_do_not() -> None:
    flags = ["slots=2", "context_length=1000", "length=100000", "hang_at=10"]
    asked = generate("a b c", max_tokens=500)
    with (
        serve(engine="mock", mock_interval=0.001, engine_arg=flags) as server,
        contextlib.ExitStack() as clients,
    ):
        for _ in range(2):
            clients.enter_context(open_stream(server.port, asked)[0])
        full = scrape_until(server, lambda scrape: scrape("penstock_completion_tokens_total") == 20)
        assert full(RATIO) == pytest.approx(num_tokens(full) / 2000)
        clients.enter_context(open_stream(server.port, asked)[0])
        waits = scrape_until(server, lambda scrape: scrape("penstock_streams_waiting") == 1)
        assert waits(RATIO) == full(RATIO)
