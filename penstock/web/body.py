"""Reads a request's body, within its bounds of time and memory, and has it parsed.

In: a request, and a function that turns its JSON object into what it asks for. Out: the function's
result, or a Problem. A body takes memory from its owner's share before it is read (see `intake`);
a large one is parsed apart from the event loop (see `parsing`). The form of JSON is checked in
`strict_json`; the meaning of the fields is not known here.
"""

import asyncio
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from penstock.errors import Problem
from penstock.stream.quotas import Owner
from penstock.web.access import access_of
from penstock.web.http1.head import number_in
from penstock.web.intake import Entry, Intake
from penstock.web.parsing import MAX_BYTES_AT_ONCE, ParsingThread
from penstock.web.strict_json import parse_object

_UNDECLARED = ("", "application/x-www-form-urlencoded")
"""The media types of requests whose programs set none: no type, or curl's default."""

GZIP = 31  # zlib's window size for gzip data

Parsed = TypeVar("Parsed")


class BodyReader:
    """Reads bodies of at most `max_bytes`, each within `timeout` seconds.

    With `strict`, each body must be declared as JSON (see `check_content_type`). After `refuse` was
    called it reads no more, and stops the reads that are under way.
    """

    def __init__(self, *, max_bytes: int, timeout: float, strict: bool = False) -> None:
        self.intake = Intake(max_bytes)
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._strict = strict
        self._thread = ParsingThread()
        self._under_way: set[asyncio.Timeout] = set()
        self._refusal: Callable[[], Problem] | None = None

    def refuse(self, refusal: Callable[[], Problem]) -> None:
        """Raise the problem that `refusal` makes instead of reading, from now on."""
        self._refusal = refusal
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(0)

    async def read(
        self, request: Request, owner: Owner, parse: Callable[[dict[str, Any]], Parsed]
    ) -> Parsed:
        """Return what `parse` makes of the JSON object in the request's body. Raises Problem.

        `parse` may run in a thread.
        """
        check_content_type(request.headers, strict=self._strict)
        is_gzip = is_compressed(request.headers.get("content-encoding"))
        access = access_of(request.scope)
        access.has_begun_body = True
        body = None if self._refusal else access.peer.take_whole_body()
        if body is not None and len(body) <= MAX_BYTES_AT_ONCE and not is_gzip:
            if len(body) > self._max_bytes:
                raise self._too_large()
            return parse(parse_object(body))
        known = self._length_of(request) if body is None else len(body)
        if known > self._max_bytes:
            raise self._too_large()
        with self._enter(request, owner, known) as entry:
            if body is None:
                body = await self._read(request, entry)
            if len(body) <= MAX_BYTES_AT_ONCE and not is_gzip:
                return parse(parse_object(body))
            return await self._thread.run(
                owner.name, lambda: parse(parse_object(self._inflate(body) if is_gzip else body))
            )

    async def read_text(
        self, owner: Owner, text: str, parse: Callable[[dict[str, Any]], Parsed]
    ) -> Parsed:
        """Return what `parse` makes of a JSON object that `read` has read before."""
        if len(text) <= MAX_BYTES_AT_ONCE:
            return parse(json.loads(text))
        return await self._thread.run(owner.name, lambda: parse(json.loads(text)))

    def _enter(self, request: Request, owner: Owner, num_bytes: int) -> Entry:
        try:
            return self.intake.enter(owner, num_bytes)
        except Problem:
            access_of(request.scope).has_begun_body = False  # a small body is still dropped
            raise

    def _length_of(self, request: Request) -> int:
        """Return the declared length of the body; 0 if there is none."""
        declared = request.headers.get("content-length", "")
        return max(0, number_in(declared.encode("latin-1")))

    async def _read(self, request: Request, entry: Entry) -> bytes:
        body = bytearray()
        limit = asyncio.timeout(0 if self._refusal else self._timeout)
        try:
            async with limit:
                self._under_way.add(limit)
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large()
                    entry.grow_to(len(body))
        except TimeoutError:
            problem = self._refusal() if self._refusal else self._too_slow()
            problem.headers["Connection"] = "close"  # the rest of the body is not a request
            raise problem from None
        except Problem as refusal:
            refusal.headers["Connection"] = "close"
            raise
        except ClientDisconnect:
            raise Problem(
                "client_gone",
                "The body ended before it was complete, or its chunks are malformed.",
            ) from None
        finally:
            self._under_way.discard(limit)
        return bytes(body)

    def _inflate(self, body: bytes) -> bytes:
        """Return the body that was compressed, which has the same limit. Raises Problem."""
        inflater = zlib.decompressobj(wbits=GZIP)
        try:
            inflated = inflater.decompress(body, self._max_bytes + 1)
        except zlib.error:
            inflated = b""
        if len(inflated) > self._max_bytes:
            raise self._too_large()
        if not inflater.eof or inflater.unused_data:
            raise Problem("invalid_gzip", "The body is not valid gzip data.")
        return inflated

    def _too_large(self) -> Problem:
        return Problem(
            "body_too_large",
            f"The body is larger than {self._max_bytes} bytes.",
            headers={"Connection": "close"},
        )

    def _too_slow(self) -> Problem:
        return Problem(
            "body_timeout",
            f"The body did not arrive within {self._timeout:g} seconds.",
        )


def is_compressed(coding: str | None) -> bool:
    """Return True if this `Content-Encoding` is gzip. Raises Problem (415) if it is another one."""
    if coding is None or (named := coding.strip().lower()) == "identity":
        return False
    if named not in ("gzip", "x-gzip"):
        raise Problem(
            "unsupported_media_type",
            "The body may be compressed with gzip only: send Content-Encoding: gzip, or none.",
            headers={"Accept-Encoding": "gzip"},
        )
    return True


def check_content_type(headers: Mapping[str, str], *, strict: bool = False) -> None:
    """Raise Problem (415) unless the headers declare JSON in UTF-8.

    Programs that declare nothing, and `curl -d`, which declares a form, send JSON, too. Unless
    `strict`, that is enough, but not in a browser: there any page can send such a body anywhere
    (https://fetch.spec.whatwg.org/#simple-header). Browsers name the page's origin.
    """
    media_type, *parameters = headers.get("content-type", "").lower().split(";")
    media_type = media_type.strip()
    named = [parameter.strip().partition("=") for parameter in parameters]
    charsets = [charset.strip('"') for name, _, charset in named if name.startswith("charset")]
    is_browser = "origin" in headers or "sec-fetch-site" in headers
    is_json = media_type == "application/json" or (
        media_type in _UNDECLARED and not is_browser and not strict
    )
    if not is_json or set(charsets) - {"utf-8", "utf8"}:
        raise Problem(
            "unsupported_media_type",
            "The body must be JSON in UTF-8: send the header Content-Type: application/json.",
        )
