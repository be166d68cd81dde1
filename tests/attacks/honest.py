"""An honest client that streams during an attack, and what it must see.

In: a server whose engine gives tokens steadily (`STEADY` are the flags of one). Out: an assertion
that the stream went on during the attack, in order, and never paused for long.
"""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.support.raw import Connection, open_stream, post
from tests.support.servers import RunningServer
from tests.support.waiting import eventually

LONGEST_PAUSE_S = 5.0
"""Ten times what an attack may cost on a busy machine with two cores."""
LONGEST_RESTART_S = 30.0
"""As long as that where the engine is started again: a process that imports Python's modules, in
less than a second if the machine is not busy."""
NUM_TOKENS = 1_000_000
STEADY: dict[str, Any] = {
    "engine": "mock",
    "mock_interval": 0.02,
    "engine_arg": [f"length={NUM_TOKENS}", f"context_length={2 * NUM_TOKENS}"],
}
"""`serve(**STEADY)`: a server whose answers never end, with 50 tokens a second."""


class HonestClient:
    """Reads one stream in a thread: the indices of its tokens, and its longest pause in seconds."""

    def __init__(self, connection: Connection) -> None:
        self.longest_pause = 0.0
        self.indices: list[int] = []
        self._connection = connection
        self._is_done = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far."""
        return len(self.indices)

    @property
    def is_reading(self) -> bool:
        """True while the stream goes on."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Close the connection."""
        self._is_done = True
        self._connection.half_close()
        self._connection.close()
        self._thread.join()

    def _read(self) -> None:
        last = time.monotonic()
        with contextlib.suppress(OSError, EOFError):
            for event in self._connection.events():
                now = time.monotonic()
                self.longest_pause = max(self.longest_pause, now - last)
                last = now
                if "index" in event:
                    self.indices.append(event["index"])
        if not self._is_done:  # the stream ended, and nobody asked for that
            self.longest_pause = float("inf")


@contextlib.contextmanager
def honest_client(
    server: RunningServer,
    *headers: str,
    longest_pause: float = LONGEST_PAUSE_S,
    context: ssl.SSLContext | None = None,
) -> Iterator[HonestClient]:
    """Stream from `server` while the context is open; check the stream when the context ends.

    The stream must go on after the attack, its events must be in order, and no two of them may be
    more than `longest_pause` seconds apart. With a `context`, the client uses TLS.
    """
    fields = {"prompt": "Hello", "max_tokens": NUM_TOKENS}
    sent = post(json.dumps(fields).encode(), *headers)
    client = HonestClient(open_stream(server.port, sent, context)[0])
    assert eventually(lambda: client.num_tokens > 0)
    try:
        yield client
        before = client.num_tokens
        assert eventually(lambda: client.num_tokens > before), "the honest stream stands still"
    finally:
        client.stop()
    assert client.indices == list(range(client.num_tokens))
    assert client.longest_pause < longest_pause
