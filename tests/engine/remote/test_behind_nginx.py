"""Upstreams behind a real nginx: what it adds, buffers and answers itself changes no answer."""

from pathlib import Path

import pytest

from penstock.engine.remote.engine import Remote
from tests.engine.remote.test_real_upstreams import (
    answer_of,
    ask,
    cancelled,
    check_same,
    remote,
    slots_at_work,
)
from tests.support.llama_server import llama_server
from tests.support.ports import free_port
from tests.support.proxies import nginx
from tests.support.remote import FIRST
from tests.support.upstreams import shared_upstream
from tests.support.waiting import eventually

FRONT = """
server {{
    listen 127.0.0.1:{port};
    {options}
    location / {{ proxy_pass {url}; proxy_http_version 1.1; proxy_read_timeout 300s; }}
}}
"""
LENGTH = 900
"""Tokens of an answer."""
OPTIONS = {
    "its defaults": "",
    "no buffers": "proxy_buffering off;",
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_an_answer_goes_on_when_the_server_behind_nginx_is_killed(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port, other = free_port(), shared_upstream()
    async with remote(other) as engine:
        expected = await ask(engine, 1, length=LENGTH).end()
    with llama_server(is_mortal=True) as server:
        config = FRONT.format(port=port, options=OPTIONS[name], url=server.url)
        with nginx(tmp_path, port, config):
            url = f"http://127.0.0.1:{port}"
            async with remote(url) as engine:
                await cancelled(engine, 2, 20)
                assert eventually(lambda: slots_at_work(server.url) == 0)
            async with remote(url) as engine:
                whole = await ask(engine, 1, length=LENGTH).end()
            both = Remote(upstreams=[{"url": url, "weight": FIRST}, {"url": other}])
            await both.start()
            server.die_in_the_next_answer()  # otherwise nginx may have the whole answer before
            sink = await ask(both, 1, length=LENGTH).end()
            await both.stop()
    for each in (whole, sink):
        assert each.failure is None
        assert each.completion_tokens == LENGTH
        await check_same(answer_of(1, each), answer_of(1, expected))
    assert f"the upstream {url} is left out" in caplog.text
