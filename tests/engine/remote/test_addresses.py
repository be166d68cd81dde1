"""How upstreams are reached: TLS that is verified, IPv6, names with no address or several."""

import contextlib
import datetime
import os
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from penstock.engine.remote.engine import Remote
from tests.support.fake_upstream import FakeUpstream, fakes
from tests.support.remote import FIRST, ask, remote, text_from

AUTHORITY, STRANGER = trustme.CA(), trustme.CA()
LONG_AGO = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
NAME = "upstream.example"


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture
def authority(tmp_path: Path) -> str:
    """The file of the CA that the operator names."""
    file = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(str(file))
    return str(file)


async def test_an_upstream_with_a_certificate_of_the_named_authority_is_used(
    authority: str,
) -> None:
    one = FakeUpstream()
    one.tls, one.name = serving(AUTHORITY.issue_cert("localhost")), "localhost"
    async with fakes(one):
        engine = Remote(upstreams=[{"url": one.url, "ca": authority}])
        await engine.start()
        sink = await ask(engine, "a", 5).end()
        await engine.stop()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))


WRONG = {
    "of a stranger": STRANGER.issue_cert("localhost"),
    "for another name": AUTHORITY.issue_cert("elsewhere.example"),
    "that has expired": AUTHORITY.issue_cert("localhost", not_after=LONG_AGO),
}


@pytest.mark.parametrize("name", [*WRONG, "no TLS"])
async def test_an_upstream_that_cannot_show_who_it_is_gets_nothing(
    name: str,
    authority: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "no TLS":  # it waits for a request that does not come
        monkeypatch.setattr("penstock.engine.remote.http.CONNECT_TIMEOUT_S", 1.0)
    wrong, good = FakeUpstream(), FakeUpstream()
    wrong.name = "localhost"
    wrong.tls = serving(WRONG[name]) if name in WRONG else None
    async with fakes(wrong, good):
        url = f"https://localhost:{wrong.port}"
        tables: list[dict[str, Any]] = [
            {"url": url, "ca": authority, "weight": FIRST},
            {"url": good.url},
        ]
        engine = Remote(upstreams=tables)
        await engine.start()
        sink = await ask(engine, "a", 5).end()
        await engine.stop()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert wrong.looks == []  # not even a request, which has the key
    assert f"the upstream {url} is left out: it cannot be reached" in caplog.text
    assert ("name the right ca" in caplog.text) == (name in WRONG)


async def test_an_upstream_may_have_an_address_of_ipv6() -> None:
    one = FakeUpstream()
    one.host, one.name = "::1", "[::1]"
    try:
        await one.open()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with remote(one) as engine:
        sink = await ask(engine, "a", 5).end()
    await one.close()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert one.asked[0].headers["host"] == f"[::1]:{one.port}"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the name `NAME` has."""
    found = ["127.0.0.1"]
    resolve = socket.getaddrinfo

    def resolved(host: str, *rest: Any, **more: Any) -> Any:
        if host != NAME:
            return resolve(host, *rest, **more)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, os.strerror(2))
        return [each for one in found for each in resolve(one, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return found


@contextlib.contextmanager
def swallowing(host: str, port: int) -> Iterator[None]:
    """Have an address that answers no SYN: the queue of its socket is full."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((host, port))
        full.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((host, port))
            if not select.select([], [waiting], [], 0.5)[1]:
                break
        yield


async def test_the_next_address_of_a_name_is_tried_if_one_is_silent(addresses: list[str]) -> None:
    one = FakeUpstream()
    one.name = NAME
    addresses[:] = ["127.0.0.2", "127.0.0.1"]
    async with fakes(one):
        with swallowing("127.0.0.2", one.port):
            async with remote(one) as engine:
                sink = await ask(engine, "a", 5).end()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))


async def test_the_next_address_of_a_name_is_tried_if_one_refuses(addresses: list[str]) -> None:
    one = FakeUpstream()
    one.name = NAME
    addresses[:] = ["127.0.0.2", "127.0.0.1"]  # nobody listens at the first one
    async with fakes(one), remote(one) as engine:
        sink = await ask(engine, "a", 5).end()
    assert (sink.failure, sink.text()) == (None, text_from(3, 5))


async def test_an_upstream_without_an_address_is_left_out_until_it_has_one_again(
    addresses: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = FakeUpstream(), FakeUpstream()
    one.name, one.weight = NAME, FIRST
    async with fakes(one, two), remote(one, two, interval=0.05) as engine:
        addresses.clear()
        sink = await ask(engine, "a", 5).end()
        assert (sink.failure, sink.text()) == (None, text_from(3, 5))
        assert len(two.asked) == 1
        assert f"the upstream {one.url} is left out: it cannot be reached" in caplog.text
        addresses.append("127.0.0.1")
        await two.close()
        sink = await ask(engine, "b", 5).end(20)
        assert (sink.failure, sink.text()) == (None, text_from(3, 5))
    assert len(one.asked) == 1
