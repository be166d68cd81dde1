"""Whatever an upstream says of itself, Penstock starts, serves, and promises nothing absurd."""

import asyncio
from typing import Any

import msgspec
import pytest

from tests.engine.remote.test_hostile import head, sends
from tests.support.fake_upstream import Exchange, FakeUpstream, Fault, fakes
from tests.support.remote import FIRST, ask, logged, remote, text_from

HUGE = 2**70


def tells(**values: Any) -> Fault:
    async def lie(exchange: Exchange) -> None:
        await exchange.whole(values)

    return lie


def models(**values: Any) -> dict[str, Fault]:
    return {"/v1/models": tells(data=[{"id": "fake", "owned_by": "vllm", **values}])}


def penstock(**values: Any) -> dict[str, Fault]:
    own = {"supports": ["return_token_ids"], "vocabulary_size": 100, **values}
    settings = {"n_ctx": HUGE}
    props = {"default_generation_settings": settings, "build_info": "penstock 1", "penstock": own}
    return {"/props": tells(**props, total_slots=HUGE), "/health/ready": tells(version="1")}


HTML = sends(head(b"Content-Type: text/html", b"Content-Length: 6"), b"<html>")
REDIRECT = sends(head(b"Location: /", b"Content-Length: 0", status=b"302 Found"))


def nests(path: str) -> dict[str, Fault]:
    body = b"[" * 100_000
    return {path: sends(head(b"Content-Length: %d" % len(body)), body)}


# Left out: the other upstream answers.
LEFT_OUT: dict[str, dict[str, Fault]] = {
    "no models": {"/v1/models": tells()},
    "a number as the model": models(id=5),
    "a broken context": models(max_model_len=0.5),
    "HTML": {"/v1/models": HTML},
    "deep JSON": nests("/v1/models"),
    "a redirect": {"/v1/models": REDIRECT},
    "no tokens": {"/tokenize": tells()},
    "negative tokens": {"/tokenize": tells(tokens=[-1])},
    "huge tokens": {"/tokenize": tells(tokens=[HUGE])},
    "deep tokens": nests("/tokenize"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
async def test_an_upstream_that_says_nonsense_of_itself_is_left_out(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    liar, good = FakeUpstream(), FakeUpstream()
    liar.lies, liar.weight = LEFT_OUT[name], FIRST
    async with fakes(liar, good), remote(liar, good) as engine:
        sink = await ask(engine, "a", 5).end()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert liar.asked == []
    assert f"the upstream {liar.url} is left out" in caplog.text


BOUNDED: dict[str, dict[str, Fault]] = {
    "a huge context": models(max_model_len=HUGE),
    "a huge vocabulary": models(max_model_len=1000, meta={"n_vocab": HUGE}),
    "a negative context": models(max_model_len=-5),
    "a name of a megabyte": models(max_model_len=1000, id="x" * 1_000_000),
    "a name of control characters": models(max_model_len=1000, id="a\n\x1b[31m\0"),
    "huge defaults": penstock(sampling={"top_k": HUGE, "seed": HUGE, "logit_bias": [[HUGE, 1.0]]}),
}


@pytest.mark.parametrize("name", BOUNDED)
async def test_what_an_upstream_says_of_itself_is_bounded(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    liar = FakeUpstream()
    liar.lies = BOUNDED[name]
    caplog.set_level("INFO")
    async with fakes(liar), remote(liar) as engine:
        msgspec.msgpack.encode(engine.info)  # as the server gets it from the engine's process
        assert 0 < engine.info.context_length < 2**31
        assert 0 < engine.info.slots < 2**31
    assert all(len(each.getMessage()) < 1000 for each in caplog.records)
    assert not any(set("\n\x1b\0") & set(each.getMessage()) for each in caplog.records)


async def test_an_upstream_whose_context_becomes_shorter_is_left_out() -> None:
    one, two = FakeUpstream(context=1000), FakeUpstream(context=1000)
    async with fakes(one, two), remote(one, two, interval=0.05) as engine:
        with logged("is shorter than the 1000 that Penstock promises") as said:
            one.context = 500
            async with asyncio.timeout(20):
                await said.wait()
        sinks = [ask(engine, f"{n}", 5, prompt=f"{n} b c") for n in range(8)]
        for sink in sinks:
            assert (await sink.end()).text() == text_from(3, 5)
    assert one.asked == []
    assert len(two.asked) == 8
