"""The web pages at `/`, `/text`, `/live` and `/docs`, and their files, read once at start."""

import gzip
import mimetypes
import re
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from penstock.api.stage import Stage
from penstock.errors import Problem

HEADERS = {
    # The page may only load and run this server's own files.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
# A weight of zero refuses the coding (RFC 9110, section 12.5.3).
_TAKES_GZIP = re.compile(r"(?:^|[,\s])gzip(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))")


def page_routes(
    model: Callable[[], str], ollama_port: int = 0, stage: Stage | None = None
) -> list[Route]:
    """Return `/`, `/text`, `/live`, `/docs` and the pages' files, `/page/{file}`.

    `/` is a page for browsers, with conversations, and a JSON greeting for other clients. At the
    port `ollama_port` (0 is none) it is the sentence by which Ollama's clients know a server.
    `/text` continues a text. `/live` shows what the server does. `/docs` shows the description of
    the API. The greeting says whether there is a `stage`.
    """
    at_ollama_port = f":{ollama_port}"
    page = resources.files("penstock") / "page"
    # The page reads streams with our JavaScript client, which clients/javascript has.
    files = _files_in(page, "") | _files_in(page / "client", "client/")

    async def root(http: Request) -> Response:
        """Return a greeting, or the page for browsers."""
        if ollama_port and http.headers.get("host", "").endswith(at_ollama_port):
            return PlainTextResponse("Ollama is running")
        if "text/html" in http.headers.get("accept", ""):
            return file(http, "index.html")
        greeting: dict[str, Any] = {"message": "Penstock is running", "model": model()}
        if stage is not None:
            greeting["stage"] = {"engine_timeout": stage.engine_timeout}
        return JSONResponse(greeting, headers={"Vary": "Accept"})

    async def text(http: Request) -> Response:
        return file(http, "text.html")

    async def live(http: Request) -> Response:
        return file(http, "live.html")

    async def docs(http: Request) -> Response:
        return file(http, "docs.html")

    async def file_route(http: Request) -> Response:
        return file(http, http.path_params["name"])

    def file(http: Request, name: str) -> Response:
        if name not in files:
            raise Problem("no_such_file", "The page has no such file.")
        content, compressed, media_type = files[name]
        headers = {**HEADERS, "Vary": "Accept, Accept-Encoding"}
        if _TAKES_GZIP.search(http.headers.get("accept-encoding", "")):
            content, headers["Content-Encoding"] = compressed, "gzip"
        return Response(content, media_type=media_type, headers=headers)

    return [
        Route("/", root, name="greet"),
        Route("/text", text, include_in_schema=False),
        Route("/live", live, include_in_schema=False),
        Route("/docs", docs, include_in_schema=False),
        Route("/page/{name:path}", file_route, include_in_schema=False),
    ]


class _File(NamedTuple):
    content: bytes
    compressed: bytes
    media_type: str


def _files_in(folder: Traversable, prefix: str) -> dict[str, _File]:
    """Return the files of a folder by name."""
    return {
        prefix + entry.name: _File(
            content := entry.read_bytes(),
            gzip.compress(content),
            mimetypes.guess_type(entry.name)[0] or "text/plain",
        )
        for entry in folder.iterdir()
        if entry.is_file()
    }
