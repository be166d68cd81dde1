"""Penstock as a Ray Serve application: each replica that Ray places is a whole Penstock server.

Ray decides where replicas run, starts new ones for dead ones, and changes their number with the
load. All replicas share a store (`--log redis://...`), so one continues the streams of another.
docs/ray.md explains `config.yaml`, which names this file.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TypedDict

import httpx
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

# The kernel ends the server with its replica, however that ends. Else it would keep the GPU.
SERVER = """
import sys
from penstock.children import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
from penstock.__main__ import main
main()
"""
LOCAL = "127.0.0.1"
# Ray's proxy opens the server to everybody who reaches the proxy. With this address the server
# knows, and wants keys.
DEFAULTS = ("--host=0.0.0.0", "--port=0")
OURS = ("--log-format=json", f"--trusted-proxy={LOCAL}")
# They concern one connection, and there are two: Ray's proxy to here, and here to the server.
HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding"})

# Ray's proxy sets them, too.
RAYS_OWN = frozenset({b"date", b"x-request-id"})

Headers = list[tuple[bytes, bytes]]


class Arguments(TypedDict):
    """The arguments of the application in `config.yaml`: the flags of `penstock serve`."""

    flags: list[str]


class Penstock:
    """A replica: a Penstock server on this machine, and the way to it from Ray's proxy."""

    def __init__(self, flags: list[str]) -> None:
        """Start a server with these flags; return when it has loaded its model and is ready.

        Raises RuntimeError if it does not start. Its log, which is in Ray's log, says why.
        """
        command = [sys.executable, "-c", SERVER, str(os.getpid()), "serve", *DEFAULTS, *flags]
        self._server = subprocess.Popen(  # noqa: S603 - the operator's own flags
            [*command, *OURS], stderr=subprocess.PIPE, text=True
        )
        assert self._server.stderr is not None
        log = _copied(self._server.stderr)
        url = next((url for line in log if (url := _served_at(line))), None)
        if url is None:
            raise RuntimeError(f"penstock serve ended with {self._server.wait()}")
        self._is_stopping = False
        threading.Thread(target=self._follow, args=(log,), daemon=True).start()
        self._client = httpx.AsyncClient(
            base_url=f"http://{LOCAL}:{httpx.URL(url).port}",
            timeout=None,  # noqa: S113 - the server decides how long a request may wait
            limits=httpx.Limits(max_connections=None),  # and how many there may be
            trust_env=False,
        )

    def _follow(self, log: Iterator[str]) -> None:
        """Read the server's log, because a full pipe would stop it. End with the server."""
        for _ in log:
            pass
        if not self._is_stopping:
            os._exit(1)  # Ray sees this at once; health checks would take three periods

    async def check_health(self) -> None:
        """Raise an error if the server does not answer; Ray then replaces the replica.

        This asks `/health/live`. A server that is not ready still has streams: its engine or its
        store comes back, and it needs no other one in its place.
        """
        (await self._client.get("/health/live")).raise_for_status()

    async def __call__(self, request: Request) -> StreamingResponse:
        """Pass a request on to the server, and its answer back as it comes."""
        asked = httpx.Request(
            request.method,
            self._client.base_url.copy_with(raw_path=_path_of(request)),
            headers=_headers_for_server(request),
            content=request.stream() if _has_body(request) else None,
        )
        answer = await self._client.send(asked, stream=True)
        response = StreamingResponse(_body_of(answer), answer.status_code)
        response.raw_headers = _without(HOP_BY_HOP | RAYS_OWN, answer.headers.raw)
        return response

    def __del__(self) -> None:
        """Stop the server: it hands over the streams that go on without a reader."""
        self._is_stopping = True
        self._server.terminate()
        self._server.wait()


def application(arguments: Arguments) -> serve.Application:
    """Return the application that `config.yaml` describes."""
    return serve.deployment(Penstock).bind(arguments["flags"])


def _copied(log: Iterator[str]) -> Iterator[str]:
    """Yield the lines of the server's log, and copy them to the replica's log."""
    for line in log:
        sys.stderr.write(line)
        yield line


def _served_at(line: str) -> str | None:
    """Return the server's address if this line of its log names it."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    is_it = isinstance(entry, dict) and entry.get("message") == "serving"
    return entry["url"] if is_it else None


def _path_of(request: Request) -> bytes:
    path, query = request.scope["raw_path"], request.scope["query_string"]
    return path + b"?" + query if query else path


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


def _headers_for_server(request: Request) -> Headers:
    headers = _without(HOP_BY_HOP | {b"forwarded"}, request.headers.raw)
    if request.client is not None:  # limits and fairness count by the client's address
        headers.append((b"x-forwarded-for", request.client.host.encode()))
    return headers


def _without(names: frozenset[bytes], headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in names]


async def _body_of(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body as it comes. A client that leaves ends this, which closes the connection."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
