"""Reads a request's body as strict JSON.

The result is a dict of JSON values, checked beyond RFC 8259: UTF-8 without a byte order mark,
finite numbers, no repeated names, no lone surrogates, bounded size and depth. The meaning of the
fields is not known here. No problem ever contains a piece of the input.
"""

import asyncio
import json
import math
import zlib
from collections.abc import Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request

from penstock.errors import Problem
from penstock.web.access import access_of
from penstock.web.http1.head import number_in

MAX_DEPTH = 64
GZIP = 31  # zlib's window size for gzip data
MAX_NUMBER_DIGITS = 1000


class BodyReader:
    """Reads bodies of at most `max_bytes`, each within `timeout` seconds.

    After `refuse` was called it reads no more, and stops the reads that are under way.
    """

    def __init__(self, *, max_bytes: int, timeout: float) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._under_way: set[asyncio.Timeout] = set()
        self._refusal: Callable[[], Problem] | None = None

    def refuse(self, refusal: Callable[[], Problem]) -> None:
        """Raise the problem that `refusal` makes instead of reading, from now on."""
        self._refusal = refusal
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(0)

    async def read_object(self, request: Request) -> dict[str, Any]:
        """Return the JSON object in the request's body. Raises Problem."""
        check_content_type(request.headers.get("content-type"))
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", "gzip", "x-gzip"):
            raise Problem(
                "unsupported_media_type",
                "The body may be compressed with gzip only: send Content-Encoding: gzip, or none.",
                headers={"Accept-Encoding": "gzip"},
            )
        access = access_of(request.scope)
        access.has_begun_body = True
        body = None if self._refusal else access.peer.take_whole_body()
        if body is None:
            body = await self._read(request)
        elif len(body) > self._max_bytes:
            raise self._too_large()
        return parse_object(body if coding == "identity" else self._inflate(body))

    async def _read(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        if number_in(declared.encode("latin-1")) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        limit = asyncio.timeout(0 if self._refusal else self._timeout)
        try:
            async with limit:
                self._under_way.add(limit)
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise self._too_large()
        except TimeoutError:
            problem = self._refusal() if self._refusal else self._too_slow()
            problem.headers["Connection"] = "close"  # the rest of the body is not a request
            raise problem from None
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


def check_content_type(value: str | None) -> None:
    """Raise Problem (415) unless the header declares JSON in UTF-8."""
    media_type, *parameters = (value or "").lower().split(";")
    named = [parameter.strip().partition("=") for parameter in parameters]
    charsets = [charset.strip('"') for name, _, charset in named if name.startswith("charset")]
    if media_type.strip() != "application/json" or set(charsets) - {"utf-8", "utf8"}:
        raise Problem(
            "unsupported_media_type",
            "The body must be JSON in UTF-8: send the header Content-Type: application/json.",
        )


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises Problem."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Problem("invalid_utf8", "The body is not UTF-8.") from None
    try:
        value = (_decoder if len(text) > MAX_NUMBER_DIGITS else _short_decoder).decode(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise Problem("invalid_json", "The body is not valid JSON.") from None
    if not isinstance(value, dict):
        raise Problem("not_an_object", "The body must be a JSON object, like {...}.")
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(value)
    if "\\u" in text:
        _check_unicode(value)
    return value


def _too_deep() -> Problem:
    return Problem("too_deep", f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for container in level:
            children = container.values() if isinstance(container, dict) else container
            inner += [child for child in children if isinstance(child, dict | list)]  # type: ignore[attr-defined] # only dicts and lists get here
        if not inner:
            return
        level = inner
    raise _too_deep()


def _check_unicode(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise Problem("invalid_unicode", "A string contains half of a surrogate pair.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise Problem("duplicate_name", "An object has the same name twice.")
    return result


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Problem("invalid_json", "A number is too large for a 64-bit float.")
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_NUMBER_DIGITS:
        raise Problem("number_too_long", f"A number has more than {MAX_NUMBER_DIGITS} digits.")
    return int(digits)


def _refuse_constant(_: str) -> None:
    raise Problem("invalid_json", "NaN and Infinity are not JSON.")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_finite,
    parse_int=_bounded_int,
    parse_constant=_refuse_constant,
)
# The numbers of a short text cannot have too many digits.
_short_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant
)
