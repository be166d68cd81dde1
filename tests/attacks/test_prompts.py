"""Prompts that are far too long, or made to be slow to read, beside an honest client."""

import json
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.support.openai_wire import CHAT
from tests.support.raw import Connection, Response, ask, generate, open_stream, post
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

NUM_ATTACKERS = 24
SIZE = 4_000_000
MEMORY = 300 * 2**20
"""How much the engine may grow: a prompt of 4 MB once took hundreds of megabytes for each slot."""
LIMIT = "This model's maximum context length is "
TEXTS = ("word ", "\n", "a", "<|", "😀", "<|end|>")


def chat(text: str) -> bytes:
    """Build a request to a chat about `text`, as often as fits into the largest body."""
    content = text * (SIZE // len(json.dumps(text)))
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    return post(json.dumps(body).encode(), path=CHAT)


def raw(text: str) -> bytes:
    return generate(text * (SIZE // len(json.dumps(text))), max_tokens=4, stream=False)


def turns() -> bytes:
    """Build a chat of so many turns that every pair of them took time in llama.cpp."""
    body = {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}] * 500
    }
    return post(json.dumps(body).encode(), path=CHAT)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve() as server:
        yield server


class HonestReader:
    """Reads one short stream after the other, and measures the longest pause without a token."""

    def __init__(self, port: int) -> None:
        self.num_tokens = 0
        self.longest_pause = 0.0
        self._port = port
        self._is_done = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_done = True
        self._thread.join()

    def _read(self) -> None:
        last = time.monotonic()
        while not self._is_done:
            connection, _ = open_stream(self._port, generate("Once upon a time", max_tokens=200))
            for event in connection.events():
                now = time.monotonic()
                self.longest_pause = max(self.longest_pause, now - last)
                last = now
                self.num_tokens += "token" in event
            connection.close()


def message_of(answer: Response) -> str:
    found = answer.json()
    return str(found["error"]["message"] if "error" in found else found["detail"])


def test_prompts_far_too_long_cost_little(server: RunningServer) -> None:
    """They were tokenised before they were refused: seconds of CPU for each, and gigabytes."""
    sent = [build(text) for text in TEXTS for build in (raw, chat)]
    engine = psutil.Process(server.engine_pid())
    before = engine.memory_info().rss
    most = 0
    answers: list[Response] = []
    honest = HonestReader(server.port)
    assert eventually(lambda: honest.num_tokens > 0)

    def attack(number: int) -> None:
        answers.append(ask(server.port, sent[number % len(sent)]))
        answers.append(ask(server.port, sent[(number + 1) % len(sent)]))

    attackers = [threading.Thread(target=attack, args=(n,)) for n in range(NUM_ATTACKERS)]
    for each in attackers:
        each.start()
    while any(each.is_alive() for each in attackers):
        most = max(most, engine.memory_info().rss)
        attackers[0].join(0.05)
        attackers[-1].join(0.05)
    num_tokens = honest.num_tokens
    assert eventually(lambda: honest.num_tokens > num_tokens)
    honest.stop()
    assert len(answers) == 2 * NUM_ATTACKERS
    for answer in answers:
        assert answer.status in (400, 422), answer
        assert message_of(answer).startswith(LIMIT), message_of(answer)
    assert honest.longest_pause < 10
    assert most - before < MEMORY


def test_a_conversation_of_many_turns_takes_no_time_in_pairs(server: RunningServer) -> None:
    began = time.monotonic()
    with Connection(server.port) as connection:
        answer = connection.send(turns()).response()
    assert message_of(answer).startswith(LIMIT)
    assert time.monotonic() - began < 20
