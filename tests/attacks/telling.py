"""An honest client of a real model that reads one answer after the other during an attack.

In: a server with the built-in model. Out: an assertion that its tokens never paused for long. A
real model's context ends an answer, so this client asks again; no time between answers is a pause.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

from tests.attacks.honest import LONGEST_PAUSE_S
from tests.support.openai_wire import COMPLETIONS
from tests.support.raw import Connection, post
from tests.support.servers import RunningServer
from tests.support.waiting import eventually

ANSWER = {
    "prompt": "Once upon a time",
    "max_tokens": 300,
    "ignore_eos": True,
    "stream": True,
    "temperature": 0,
}


class Teller:
    """Reads answers in a thread: the number of events, and the longest pause within an answer."""

    def __init__(self, server: RunningServer, *headers: str) -> None:
        self.num_events = 0
        self.longest_pause = 0.0
        self.failure: Exception | None = None
        self._port = server.port
        self._sent = post(json.dumps(ANSWER).encode(), *headers, path=COMPLETIONS)
        self._is_done = False
        self._thread = threading.Thread(target=self._read_all, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read the current answer to its end, and ask no more."""
        self._is_done = True
        self._thread.join()

    def _read_all(self) -> None:
        try:
            while not self._is_done:
                self._read()
        except Exception as error:
            self.failure = error

    def _read(self) -> None:
        with Connection(self._port) as connection:
            head = connection.send(self._sent).head()
            assert head.status == 200
            last = time.monotonic()
            for _ in connection.chunks():
                now = time.monotonic()
                self.longest_pause = max(self.longest_pause, now - last)
                last = now
                self.num_events += 1


@contextlib.contextmanager
def story_told(
    server: RunningServer, *headers: str, longest_pause: float = LONGEST_PAUSE_S
) -> Iterator[Teller]:
    """Read answers from `server` while the context is open; check them when it ends."""
    teller = Teller(server, *headers)
    try:
        assert eventually(lambda: teller.num_events > 0)
        yield teller
        before = teller.num_events
        assert eventually(lambda: teller.num_events > before), "the honest stream stands still"
    finally:
        teller.stop()
    assert teller.failure is None, teller.failure
    assert teller.longest_pause < longest_pause
