"""Clients of a stream whose log loses its end, together with the server that wrote it.

The engine gives other pieces after the loss, as a sampled answer does. A client that has not seen
what was lost goes on with the new pieces; a client that has seen more is refused, always.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.faults.client_request import fetch, request_bytes
from tests.faults.history import Got, numbered
from tests.faults.reading import Reader, RefusedError, cancel, fresh_word
from tests.faults.replicas import Clients, Replicas
from tests.support.servers import RunningServer

NUM_KEPT = 20
"""Both clients have seen so many events when the test begins to lose what comes."""
NUM_TOKENS = 100_000  # it ends when it is cancelled
PIECE = re.compile(r"(\w+):(\d+)@(\d+) ")


@dataclass
class LostTail:
    """A stream and its two clients. `gate` keeps the next engine from going on with it."""

    clients: Clients
    word: str
    gate: Path
    ahead: Reader
    behind: Reader

    @classmethod
    async def begin(cls, replicas: Replicas, server: RunningServer) -> Self:
        """Open the stream at a server. The client that will be behind leaves."""
        clients, word = Clients(replicas), fresh_word()
        ahead, behind = (Reader(server.address, clients.history) for _ in range(2))
        truth = numbered(word, length=1_000_000, max_tokens=NUM_TOKENS)
        prompt = f"{word} says sampled gated"
        await ahead.open(truth, prompt=prompt, max_tokens=NUM_TOKENS)
        await behind.attach(ahead.stream)
        await behind.got(NUM_KEPT)
        behind.leave()
        return cls(clients, word, replicas.folder / "gate", ahead, behind)

    async def follower(self, server: RunningServer) -> Reader:
        """Read the stream from its beginning, also at another server."""
        reader = Reader(server.address, self.clients.history)
        await reader.attach(self.ahead.stream)
        return reader

    async def read_on(self) -> None:
        """Read the next event, which the store will lose."""
        await self.ahead.got(self.ahead.cursor + 1)

    async def is_lost(self) -> None:
        """The server is dead. The next one waits for the gate before it goes on."""
        await self.ahead.closed()
        self.gate.touch()

    async def goes_on(self, server: RunningServer) -> None:
        """Check what the clients get from the stream's next server."""
        late = await self.follower(server)
        await self.is_refused(self.ahead, server)
        await self.is_refused(self.ahead, server)
        self.gate.unlink()
        await late.got(self.ahead.cursor + 5)  # the new answer has passed the old one
        late.leave()
        await self.is_refused(self.ahead, server)
        # Nobody can tell this client from one that has seen what was lost.
        await self.is_refused(late, server)
        self.behind.address = server.address
        await self.behind.attach()
        await self.behind.got(late.cursor)
        stream = self.ahead.stream
        assert await cancel(server.address, self.clients.history, stream) == "cancelled"
        assert (await self.behind.read_through()).reason == "cancelled"
        await self.is_refused(self.ahead, server)
        whole = await self.follower(server)
        assert (await whole.read_through()).reason == "cancelled"
        num_kept = self._num_of_first_engine(whole)
        assert NUM_KEPT < num_kept <= self.ahead.cursor
        assert self._num_of_first_engine(self.behind) == num_kept
        assert self._num_of_first_engine(self.ahead) == self.ahead.cursor + 1

    async def is_refused(self, reader: Reader, server: RunningServer) -> None:
        """Check that a reader cannot go on at this server, with GET nor with its POST."""
        reader.address = server.address
        with pytest.raises(RefusedError) as refused:
            await reader.attach()
        assert (refused.value.status, refused.value.code) == (410, "history_lost")
        last = f"Last-Event-ID: {reader.stream}.{reader.cursor}"
        body = json.dumps({"prompt": "any", "stream": True, "resumable": True}).encode()
        head, answer = await fetch(
            server.address, request_bytes("POST", "/generate", last, body=body)
        )
        assert (head.status, json.loads(answer)["code"]) == (410, "history_lost")
        assert "safe to send your request again" in json.loads(answer)["detail"]

    def _num_of_first_engine(self, reader: Reader) -> int:
        """Return how many pieces the first engine made of what a reader has seen.

        Its pieces must be numbered without a gap, and change from one engine to the next once.
        """
        entries = self.clients.history.streams[self.ahead.stream].entries
        text = "".join(
            each.text for each in entries if isinstance(each, Got) and each.reader == reader.name
        )
        pieces = PIECE.findall(text)
        assert "".join(f"{word}:{number}@{pid} " for word, number, pid in pieces) == text
        assert [(word, int(number)) for word, number, _ in pieces] == [
            (self.word, number) for number in range(len(pieces))
        ]
        engines = [pid for _, _, pid in pieces]
        num = engines.count(engines[0])
        assert engines[:num] == [engines[0]] * num
        assert len(set(engines[num:])) <= 1
        return num
