"""What holds at every replica: owners, deadlines, lingering, restarts, deploys, large returns."""

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.checker import judge
from tests.faults.client_request import fetch, request_bytes
from tests.faults.history import History
from tests.faults.reading import Reader, RefusedError, cancel
from tests.faults.replicas import PLACES, Clients, Replicas, adds_up, got
from tests.support.keyed import Keys
from tests.support.raw import Connection, ask, request
from tests.support.scraped import scrape_until

PATIENCE_S = 60.0
FOR_EVER = 100_000
NUMBER = re.compile(r":(\d+) ")


async def refusal_of(reader: Reader) -> tuple[int, str]:
    """Return the status and the code that a reader gets that attaches."""
    with pytest.raises(RefusedError) as caught:
        await reader.attach()
    return caught.value.status, caught.value.code


async def test_a_single_server_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    with Replicas(PLACES["folder"](tmp_path).log, tmp_path, retain=600) as replicas:
        server = replicas.start()
        clients = Clients(replicas)
        (short,) = await clients.open(1, num_tokens=3)
        await short.closed()
        running = await clients.open(3)
        await got(running, 3)
        await asyncio.to_thread(replicas.kill, server)
        server = await asyncio.to_thread(replicas.start)
        for reader in running:
            reader.turn_to(replicas.addresses)
        ahead = Reader(server.address, History())
        ahead.stream, ahead.cursor = running[0].stream, 5000
        ahead._history.open(ahead.stream, clients.history.streams[ahead.stream].truth)
        assert await refusal_of(ahead) == (410, "history_lost")
        again = Reader(server.address, clients.history)
        again.stream = short.stream
        clients.readers.append(again)
        verdict = await clients.all_end()
        assert verdict.holds, verdict
        assert verdict.endings == {"length": 4}
        await asyncio.to_thread(replicas.kill, server)
        server = await asyncio.to_thread(replicas.start, module="tests.support.an_hour_ahead")
        assert await status_of(server.address, short.stream) in (404, 410)


async def status_of(address: tuple[str, int], stream: str) -> int:
    head, _ = await fetch(address, request_bytes("GET", f"/streams/{stream}"))
    return head.status


def test_other_keys_get_404_at_every_replica(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys", "alice", "bob", "admin")
    with Replicas(PLACES["folder"](tmp_path).log, tmp_path, keys=keys.path) as replicas:
        replicas.start(2)
        owner, other = replicas.running
        sent = keys.generate("alice", stream=True, resumable=True, max_tokens=FOR_EVER)
        with Connection(owner.port) as connection:
            head = connection.send(sent).head()
            path = f"/streams/{head.headers['x-stream-id']}"
            connection.chunk()
            for name in ("bob", None):
                headers = [keys.header(name)] if name else []
                wanted = 404 if name else 401
                for server in replicas.running:
                    assert ask(server.port, request("GET", path, *headers)).status == wanted
                    assert ask(server.port, request("DELETE", path, *headers)).status == wanted
        replicas.kill(owner)
        for method in ("GET", "DELETE"):
            assert ask(other.port, request(method, path, keys.header("bob"))).status == 404
        with Connection(other.port) as connection:
            connection.send(request("GET", path, keys.header("alice")))
            assert connection.head().status == 200
            connection.chunk()
        for name in ("admin", "alice"):
            answer = ask(other.port, request("DELETE", path, keys.header(name)))
            assert answer.json()["finish_reason"] == "cancelled"


async def test_deadlines_and_lingering_hold_away_from_the_owner(tmp_path: Path) -> None:
    with Replicas(PLACES["folder"](tmp_path).log, tmp_path, linger=3) as replicas:
        replicas.start(2)
        owner, other = replicas.running
        clients = Clients(replicas)
        (timed,) = await clients.open(1, num_tokens=FOR_EVER, timeout=10)
        (read,) = await clients.open(1, num_tokens=250)
        (unread,) = await clients.open(1, num_tokens=FOR_EVER)
        await got([timed, read, unread], 1)
        # Nobody reads these at their owner: one is read elsewhere, for longer than they linger.
        for reader in (read, unread):
            reader.leave()
        await read.attach()
        assert (await read.read_through()).reason == "length"
        assert await cancel(other.address, History(), unread.stream) == "cancelled"
        await asyncio.to_thread(replicas.kill, owner)
        assert (await timed.read_through()).reason == "deadline"
        (scrape,) = await asyncio.to_thread(replicas.are_idle)
        assert adds_up(scrape), scrape.text


async def test_an_owner_that_was_stopped_shows_what_its_successor_generates(
    tmp_path: Path,
) -> None:
    place = PLACES["redis"](tmp_path)
    with Replicas(place.log, tmp_path) as replicas:
        replicas.start(2)
        owner, other = replicas.running
        clients = Clients(replicas)
        readers = await clients.open(4, num_tokens=400)
        stays, leaves = readers[:2], readers[2:]
        await got(readers, 3)
        owner.signal(signal.SIGSTOP)
        for reader in leaves:
            reader.leave("RST")
            await reader.attach()
        await asyncio.to_thread(
            scrape_until, other, lambda scrape: scrape("penstock_takeovers_total") == 4
        )
        await got(leaves, leaves[0].cursor + 3)
        owner.signal(signal.SIGCONT)
        await asyncio.gather(*(reader.closed() for reader in stays))
        verdict = await clients.all_end()
        assert verdict.holds, verdict
        assert verdict.endings == {"length": 4}
        for scrape in await asyncio.to_thread(replicas.are_idle):
            assert adds_up(scrape), scrape.text
            assert scrape("penstock_streams_stored") == 0
    place.close()


async def posted(address: tuple[str, int], path: str, **fields: Any) -> bytes:
    """Send a request; return the whole body of its answer."""
    body = json.dumps(fields).encode()
    head, answer = await fetch(address, request_bytes("POST", path, body=body))
    assert head.status == 200, answer
    return answer


async def completed(address: tuple[str, int], response_id: str) -> dict[str, Any]:
    """Return a response of the background once it has ended."""
    while True:
        _, body = await fetch(address, request_bytes("GET", f"/v1/responses/{response_id}"))
        response: dict[str, Any] = json.loads(body)
        if response["status"] not in ("queued", "in_progress"):
            return response
        await asyncio.sleep(0.05)


async def test_two_deploys_that_overlap_cut_no_answer(tmp_path: Path) -> None:
    num_tokens = 400  # eight seconds: a busy machine takes long to start the third server
    with Replicas(PLACES["folder"](tmp_path).log, tmp_path) as replicas:
        first = replicas.start()
        clients = Clients(replicas)
        second = replicas.start()
        stored = await clients.open(3, num_tokens=num_tokens)
        unstored = await clients.open(3, num_tokens=num_tokens, resumable=False)
        asked = {"max_tokens": num_tokens, "messages": [{"role": "user", "content": "w says"}]}
        chat = "/v1/chat/completions"
        whole = asyncio.create_task(posted(first.address, chat, **asked))
        several = asyncio.create_task(posted(first.address, chat, n=2, stream=True, **asked))
        later = {"input": "w says", "background": True, "max_output_tokens": num_tokens}
        response = json.loads(await posted(first.address, "/v1/responses", **later))
        await got([*stored, *unstored], 3)
        first.signal(signal.SIGTERM)
        await got([*stored, *unstored], stored[0].cursor + 5)
        await asyncio.to_thread(
            scrape_until, second, lambda scrape: scrape("penstock_streams_running") == 10
        )
        third = await asyncio.to_thread(replicas.start)
        second.signal(signal.SIGTERM)
        await asyncio.gather(*(reader.closed() for reader in [*stored, *unstored]))
        verdict = judge(clients.history)
        assert verdict.holds, verdict
        assert verdict.endings == {"length": 6}
        assert verdict.counts["cut"] == 0
        text = json.loads(await whole)["choices"][0]["message"]["content"]
        assert list(map(int, NUMBER.findall(text))) == list(range(num_tokens))
        done = await completed(third.address, response["id"])
        text = done["output"][-1]["content"][0]["text"]
        assert list(map(int, NUMBER.findall(text))) == list(range(num_tokens))
        texts = ["", ""]
        for line in (await several).splitlines():
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
        for text in texts:
            assert list(map(int, NUMBER.findall(text))) == list(range(num_tokens))
        for server in (first, second):
            await asyncio.to_thread(replicas.died, server)
            assert server.process.returncode == 0


async def test_a_thousand_clients_that_return_at_once_find_their_streams(tmp_path: Path) -> None:
    num_streams, num_readers = 50, 20
    # Ten seconds for 100 tokens: a busy machine takes long to open the last stream.
    engine_arg = [f"folder={tmp_path}", "length=1000000", "interval=0.1"]
    with Replicas(PLACES["folder"](tmp_path).log, tmp_path, engine_arg=engine_arg) as replicas:
        replicas.start(2)
        owner, other = replicas.running
        clients = Clients(replicas)
        first = await clients.open(num_streams, num_tokens=100)
        await got(first, 1)
        await asyncio.to_thread(replicas.kill, owner)
        for reader in first:
            others = [Reader(other.address, clients.history) for _ in range(num_readers - 1)]
            for each in others:
                each.stream = reader.stream
            clients.readers += others
        verdict = await clients.all_end()
        assert verdict.holds, verdict
        assert verdict.endings == {"length": num_streams}
        (scrape,) = await asyncio.to_thread(replicas.are_idle)
        assert adds_up(scrape), scrape.text
        assert scrape("penstock_takeovers_total") == num_streams


async def test_clocks_may_differ_by_an_hour(tmp_path: Path) -> None:
    place = PLACES["redis"](tmp_path)
    with Replicas(place.log, tmp_path, linger=5) as replicas:
        victim = replicas.start()
        ahead = replicas.start(module="tests.support.an_hour_ahead")
        clients = Clients(replicas)
        (ended,) = await clients.open(1, num_tokens=2)
        await ended.closed()
        (timed,) = await clients.open(1, num_tokens=FOR_EVER, timeout=6)
        (unread,) = await clients.open(1, num_tokens=FOR_EVER)
        readers = await clients.open(3, num_tokens=150)
        await got([timed, unread, *readers], 1)
        await asyncio.to_thread(replicas.kill, victim)
        unread.leave()
        again = Reader(ahead.address, clients.history)
        again.stream = ended.stream
        assert (await again.read_through()).reason == "length"
        ends = await asyncio.gather(*(reader.read_through() for reader in [*readers, timed]))
        assert [end.reason for end in ends] == ["length"] * 3 + ["deadline"]
        for end in ends:
            seconds = json.loads(end.data)["timings"]
            assert all(0 <= each < PATIENCE_S for each in seconds.values() if each is not None)
        (scrape,) = await asyncio.to_thread(replicas.are_idle)
        assert scrape("penstock_streams_ended_total", cause="client_gone") == 1
    place.close()
