"""What every SDK is asked to do, and the report of what its user then gets.

A script in this folder writes one class for each API that its SDK speaks, with the four methods of
`Form`, and passes it to `report`. What a task needs comes in the variable SDK_TASK, as JSON. All
scripts report the same values, so `test_sdks` can compare them.
"""

import contextlib
import json
import os
import threading
import time
import traceback
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel

TASK: dict[str, Any] = json.loads(os.environ["SDK_TASK"])
TURNS: list[Any] = TASK["turns"]
SYSTEM: str = TURNS[0]["content"]
PERSON: list[Any] = [{"role": "user", "content": "Who wrote the first program?"}]
STORY: list[Any] = TASK["story"]
WEATHER: list[Any] = [{"role": "user", "content": "What is the weather in Bonn?"}]
PATIENCE_S = 60


@dataclass(frozen=True)
class Server:
    """The server that a form shall ask, and how. `retries` are those of the SDK itself."""

    url: str = TASK["url"]
    model: str = "telling"
    key: str = TASK["keys"]["user"]
    retries: int = 0
    headers: dict[str, str] = field(default_factory=dict)


REAL = Server(TASK["model_url"], "rill")


class Form(Protocol):
    """An SDK with one of the APIs that it speaks. `errors` are what it raises for refusals."""

    def ask(self, server: Server, turns: list[Any]) -> tuple[str, tuple[int, int]]:
        """Return a whole answer, and its tokens: the prompt's and its own."""

    def stream(self, server: Server, turns: list[Any]) -> Iterator[str]:
        """Yield the pieces of a streamed answer (temperature 0)."""

    def use_tool(self, server: Server, turns: list[Any]) -> str:
        """Offer `get_weather(city)`, call it as the model says, and return the last answer."""

    def person(self, server: Server, turns: list[Any]) -> Any:
        """Return a `Person` by the SDK's own means."""


class Person(BaseModel):
    """A schema with few answers, because the real model is tiny."""

    name: Literal["Ada", "Grace"]
    is_alive: bool


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"21 degrees in {city}"


def report(**forms: Form) -> None:
    """Do everything with each form and print the report: {form: {task: result}}."""
    results = {name: {do.__name__: _tried(do, form) for do in DONE} for name, form in forms.items()}
    print("\n" + json.dumps(results))


def _tried(do: Callable[[Any], Any], form: Any) -> Any:
    try:
        return do(form)
    except NotImplementedError as error:
        return {"cannot": str(error)}
    except BaseException:  # CancelledError, too: it is a result
        return {"raised": traceback.format_exc()}


def whole(form: Form) -> Any:
    """Ask with a system prompt and three turns."""
    text, usage = form.ask(Server(), TURNS)
    return {"text": text, "usage": list(usage)}


def streamed(form: Form) -> Any:
    """Read the same answer as it comes."""
    pieces = list(form.stream(Server(), TURNS))
    return {"text": "".join(pieces), "is_streamed": len(pieces) > 5}


def tool(form: Form) -> Any:
    """Let the model call a tool, and answer with its result."""
    return form.use_tool(Server(), WEATHER)


def structured(form: Form) -> Any:
    """Get an object of a schema from a real model."""
    person = form.person(REAL, PERSON)
    return Person.model_validate(person, from_attributes=True) is not None


def refused(form: Form) -> Any:
    """Name the exceptions for a wrong key, a prompt that is too long, and too many requests."""
    long = [{"role": "user", "content": "word " * 9000}]
    return {
        "401": _error(lambda: form.ask(Server(key="psk_wrong_wrong_wrong"), TURNS)),
        "400": _error(lambda: form.ask(Server(), long)),
        "429": _error(lambda: form.ask(Server(key=TASK["keys"]["full"]), TURNS)),
    }


def retried(form: Form) -> Any:
    """Be refused once, and be answered after the wait that the server asked for."""
    with _busy(TASK["keys"]["busy"]):
        began = time.monotonic()
        text, _ = form.ask(Server(key=TASK["keys"]["busy"], retries=10), TURNS)
        return {"text": text, "waited": time.monotonic() - began >= 1}


def joined(form: Form) -> Any:
    """Lose the connection before the answer; the SDK's retry has the same Idempotency-Key."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    server = Server(TASK["cut_url"], key=TASK["keys"]["once"], retries=3, headers=headers)
    return form.ask(server, _marked("cut-whole"))[0]


def cut(form: Form) -> Any:
    """Lose the connection in mid-stream: is the user told, or does the answer look complete?"""
    pieces: list[str] = []
    error = _error(
        lambda: pieces.extend(form.stream(Server(TASK["cut_url"]), _marked("cut-stream")))
    )
    return {"raised": error}


def killed(form: Form) -> Any:
    """Stream from a real model whose engine is killed in the middle."""
    deadly = Path(TASK["die"])  # the engine removes it, and dies
    deadly.touch()
    try:
        return "".join(form.stream(REAL, STORY))
    finally:
        deadly.unlink(missing_ok=True)


DONE = (whole, streamed, tool, structured, refused, retried, joined, cut, killed)


def _marked(mark: str) -> list[Any]:
    """Return a conversation whose first request the proxy cuts, once."""
    return [{"role": "user", "content": f"{mark}-{uuid.uuid4().hex} " + "word " * 40}]


def _error(do: Callable[[], Any]) -> str | None:
    """Return the name of the exception's class, or None without one."""
    try:
        do()
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error).__name__
    return None


def _send(url: str, key: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE_S)


@contextlib.contextmanager
def _busy(key: str) -> Iterator[None]:
    """Hold the only stream that `key` may have, until the key's next request was refused."""

    def num_refused() -> str:
        text = _send(f"{Server().url}/metrics", TASK["keys"]["admin"]).read().decode()
        return "".join(
            line for line in text.splitlines() if 'key_refusals_total{key="busy"}' in line
        )

    holding = {"messages": [{"role": "user", "content": "hold"}], "stream": True}
    held = _send(f"{Server().url}/v1/chat/completions", key, holding)
    before = num_refused()
    is_over = threading.Event()

    def let_go() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while num_refused() == before and time.monotonic() < deadline:
            if is_over.wait(0.02):
                break
        held.close()

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
