"""A strict parser of HTTP/1.1 responses (RFC 9112): what is not exactly right raises.

Client libraries forgive much. A test of the server's own bytes must not.
"""

import dataclasses
import re

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_STATUS_LINE = re.compile(
    rb"HTTP/1\.(?P<minor>[01]) (?P<status>[1-5][0-9]{2}) (?P<reason>[\t -~]*)"
)
_HEADER = re.compile(
    rb"(?P<name>"
    + _TOKEN
    + rb"):[ \t]*(?P<value>(?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
)
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_DIGITS = re.compile(r"[0-9]+")
# RFC 9110: these may stand in a response only once.
_SINGLE = ("content-length", "content-type", "date", "location", "retry-after", "transfer-encoding")


class NotHttpError(AssertionError):
    """The bytes are not a response in HTTP/1.1."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A whole response. Names of headers are in lower case.

    `is_old` is True if it is one of HTTP/1.0, which only a request of HTTP/1.0 may get.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    is_old: bool = False

    def header(self, name: str) -> str:
        """Return the values of a header, joined; empty without such a header."""
        return ", ".join(value for each, value in self.headers if each == name)

    @property
    def closes(self) -> bool:
        """True if the server says that it closes the connection."""
        options = [option.strip() for option in self.header("connection").lower().split(",")]
        return "close" in options or (self.is_old and "keep-alive" not in options)

    @property
    def request_id(self) -> str:
        return self.header("x-request-id")


def first_answer(data: bytes, *, to_head: bool = False, ended: bool) -> tuple[Answer, bytes] | None:
    """Parse the first response in `data`; return it and the bytes after it.

    Returns None if it is not complete yet. `to_head` is True for the response to a HEAD request.
    `ended` is True if no more bytes will come; then an incomplete response raises.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    if not blank:
        _no_bare_line_ends(data)
        _check_whole(data, ended)
        return None
    answer = _parse_head(head)
    _check_framing(answer)
    if to_head or answer.status < 200 or answer.status in (204, 304):
        return answer, rest
    if answer.header("transfer-encoding"):
        parsed = _chunked(rest)
    elif length := answer.header("content-length"):
        parsed = (rest[: int(length)], rest[int(length) :]) if len(rest) >= int(length) else None
    else:
        parsed = (rest, b"") if ended else None  # the end of the connection ends the body
    if parsed is None:
        _check_whole(data, ended)
        return None
    body, rest = parsed
    return dataclasses.replace(answer, body=body), rest


def _check_whole(data: bytes, ended: bool) -> None:
    if ended and data:
        raise NotHttpError(f"the response is cut: {data[-200:]!r}")


def _parse_head(head: bytes) -> Answer:
    _no_bare_line_ends(head)
    first, *lines = head.split(b"\r\n")
    if not (found := _STATUS_LINE.fullmatch(first)):
        raise NotHttpError(f"not a status line: {first[:200]!r}")
    headers = []
    for line in lines:
        if not (header := _HEADER.fullmatch(line)):
            raise NotHttpError(f"not a header: {line[:200]!r}")
        headers.append((header["name"].decode().lower(), header["value"].decode("latin-1")))
    return Answer(int(found["status"]), headers, is_old=found["minor"] == b"0")


def _no_bare_line_ends(head: bytes) -> None:
    without = head.replace(b"\r\n", b"").removesuffix(b"\r")
    if b"\r" in without or b"\n" in without:
        raise NotHttpError(f"a bare CR or LF: {head[:200]!r}")


def _check_framing(answer: Answer) -> None:
    for name in _SINGLE:
        if sum(each == name for each, _ in answer.headers) > 1:
            raise NotHttpError(f"{name} twice: {answer.headers}")
    length, coding = answer.header("content-length"), answer.header("transfer-encoding")
    if length and not _DIGITS.fullmatch(length):
        raise NotHttpError(f"not a length: {length!r}")
    if coding and coding != "chunked":
        raise NotHttpError(f"not a coding of ours: {coding!r}")
    if coding and answer.is_old:
        raise NotHttpError("a coding in HTTP/1.0")
    if length and coding:
        raise NotHttpError("both Content-Length and Transfer-Encoding")
    if (length or coding) and (answer.status < 200 or answer.status == 204):
        raise NotHttpError(f"a length or a coding with status {answer.status}")
    if answer.status >= 200 and answer.status < 500 and not answer.header("date"):
        raise NotHttpError("no Date")  # RFC 9110, section 6.6.1


def _chunked(data: bytes) -> tuple[bytes, bytes] | None:
    """Return a chunked body and what follows it, or None if it is not complete."""
    body = b""
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None
        if not _SIZE.fullmatch(line):
            raise NotHttpError(f"not the size of a chunk: {line[:200]!r}")
        size = int(line, 16)
        if len(data) < size + 2:
            return None
        body, after, data = body + data[:size], data[size : size + 2], data[size + 2 :]
        if after != b"\r\n":
            raise NotHttpError(f"a chunk ends in {after!r}, or the body has trailers")
        if size == 0:
            return body, data
