"""A client's plaintext HTTP/1.1 connection: bytes in, exchanges, bytes out.

httptools (llhttp) parses; the rest is ours. One request is answered at a time: what a client sends
ahead waits unparsed. A write goes to the kernel at once. If the kernel does not take all of it, the
rest waits in the transport, and nothing else is written until it is gone. A connection has no
timers: it has a deadline, which the server looks at (see `server`).
"""

import asyncio
import math
import os
import re
import time
from typing import TYPE_CHECKING, Any, NoReturn, cast

import httptools

from penstock.errors import Problem
from penstock.web.addresses import network_of
from penstock.web.http1 import half_closed, head, proxy_protocol
from penstock.web.http1.exchange import MAX_BODY_AHEAD, Exchange
from penstock.web.peer import PEER

if TYPE_CHECKING:
    from penstock.web.http1.server import Http1Server

# Bytes that a client sent ahead; beyond these, the kernel keeps them.
MAX_AHEAD = 64 * 1024
# A piece of a chunked body may contain the next requests, which are then parsed ahead. Small pieces
# bound their number.
CHUNKED_PIECE = 4096
HEAD_END = b"\r\n\r\n"
_METHOD = re.compile(rb"(?:\r\n)*[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")
# How long a connection that we close still reads what the client sends: without that, its kernel
# might drop our last answer.
LINGER_S = 2.0


class _StopParsing(Exception):  # noqa: N818 - it reports no error
    """Ends the parsing of a request that is refused."""


class Connection(asyncio.Protocol):
    """One connection of `server`."""

    __slots__ = (
        "_ahead",
        "_client",
        "_descriptor",
        "_framing_bytes",
        "_has_eof",
        "_head_bytes",
        "_headers",
        "_is_paused",
        "_is_primed",
        "_is_waiting",
        "_length_left",
        "_line",
        "_line_fault",
        "_may_be_proxied",
        "_parser",
        "_reading",
        "_tail",
        "_target",
        "_transport",
        "_unread",
        "deadline",
        "descriptor",
        "exchange",
        "is_closing",
        "is_lingering",
        "network",
        "server",
    )

    def __init__(self, server: "Http1Server") -> None:
        self.server = server
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = None
        """None between most messages: a parser takes a kilobyte."""
        self._client: tuple[str, int] | None = None
        self.network = ""
        """The client's network, or "" if it has no share of the connections (see `shares`)."""
        self._may_be_proxied = False
        """True until it is clear whether a trusted proxy names its client in its first bytes."""
        self._descriptor = -1
        self.descriptor = -1
        """The socket while everything that was written has been taken, otherwise -1."""
        self.deadline = math.inf
        """When the connection is closed unless the client does something, on the monotonic
        clock."""
        self.exchange: Exchange | None = None
        """The exchange that is being answered."""
        self._reading: Exchange | None = None
        """The exchange whose body is being read."""
        self._ahead: list[tuple[Exchange, dict[str, Any]]] | None = None
        """Exchanges and scopes of the next requests: they came in one piece with a chunked body."""
        self._unread = b""
        self._is_paused = False
        self._is_waiting = False
        """True while the server has no room for the connection."""
        self._is_primed = True
        """False while a new parser gets a head that was read before."""
        self._has_eof = False
        self.is_closing = False
        """True if the connection ends after the response that is under way."""
        self.is_lingering = False
        """True once the last response was written: what the client sends is dropped."""
        self._length_left = 0
        """The bytes of the body that still have to come; -1 if its length is unknown (chunks)."""
        self._forget_head()

    def _forget_head(self) -> None:
        self._target = b""
        self._headers: list[head.Header] = []
        self._head_bytes = 0
        self._line: bytes | None = b""
        """The beginning of the head's first line; None once the line's end has come, or if the
        head began in a piece of the last body's chunks."""
        self._line_fault = ""
        """Why the first line is refused, or "". The parser alone would take such a line."""
        self._tail = b""
        self._framing_bytes = 0

    # Reports of the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read, if the server has room for the connection."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has another base class
        self._transport.set_write_buffer_limits(high=0)
        name = transport.get_extra_info("peername")
        self._client = name[:2] if name else None  # an IPv6 address has four parts
        self._descriptor = self.descriptor = transport.get_extra_info("socket").fileno()
        self._may_be_proxied = self._client is not None and self.server.trusts(self._client[0])
        if self._client is not None and not self._may_be_proxied:
            self.network = network_of(self._client[0])
        self.server.opened(self)

    def data_received(self, data: bytes) -> None:
        """Parse what the client sends, unless an answer is under way."""
        if self.is_lingering:
            return
        if self._is_waiting:
            self._unread += data
            self._pause()
            return
        if self._may_be_proxied and not (data := self._without_proxy_header(data)):
            return
        if self._unread or (self.exchange is not None and self._reading is None):
            self._unread += data
            if len(self._unread) > MAX_AHEAD and not self._is_paused:
                self._pause()
                # A transport that does not read does not see its client leave.
                half_closed.watch(self)
            return
        self._parse(data)

    def eof_received(self) -> bool:
        """Note that the client sends nothing more. It may still read."""
        self._has_eof = True
        if self.is_lingering or self._transport is None:
            return False
        if self._is_waiting:
            return False
        if self._unread and self.exchange is None and not self._may_be_proxied:
            return True  # the next request is about to be parsed
        return self._end_input()

    def _end_input(self) -> bool:
        """React to the end of what the client sends; return False if the connection is over."""
        if self._reading is not None:
            reading, self._reading = self._reading, None
            self.is_closing = True
            reading.break_body()
            return True
        if self.exchange is None:
            return False  # the transport closes
        half_closed.watch(self)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the exchange: nobody is there any more."""
        self._transport = None
        self._descriptor = self.descriptor = -1
        self.server.closed(self)
        exchange, self.exchange = self.exchange, None
        reading, self._reading = self._reading, None
        for each in (exchange, reading):
            if each is not None:
                each.gone()
        self._ahead = None

    def pause_writing(self) -> None:
        """Do nothing: `write_rest` notices it."""

    def resume_writing(self) -> None:
        """Note that the kernel has taken everything that waited."""
        if not self.is_closing:
            self.descriptor = self._descriptor
        if self.exchange is not None:
            self.deadline = math.inf
            self.exchange.taken()

    # Reading.

    def _without_proxy_header(self, data: bytes) -> bytes:
        """Return the data behind a proxy's header; none while the header is not complete."""
        data, self._unread = self._unread + data, b""
        try:
            found = proxy_protocol.parse(data)
        except ValueError:
            self.abort()
            return b""
        if found is None and proxy_protocol.may_be_header(data):
            self._unread = data
            return b""
        self._may_be_proxied = False
        if found is None:
            return data
        source, size = found
        self._client = source or self._client
        return data[size:]

    def _parse(self, data: bytes) -> None:
        """Feed the parser with one message at most, and keep the rest."""
        while data:
            if self._reading is None:
                piece, data = self._split_head(data)
            elif self._length_left >= 0:
                piece, data = data[: self._length_left], data[self._length_left :]
                self._length_left -= len(piece)
            else:
                piece, data = data[:CHUNKED_PIECE], data[CHUNKED_PIECE:]
                self._framing_bytes += len(piece)
                if self._framing_bytes > head.MAX_BYTES:  # an extension or trailers
                    self._refuse_malformed(piece, ValueError("no body within the chunks"))
                    return
            if self._parser is None:
                self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                self._parse_on_without_upgrade()
            except httptools.HttpParserCallbackError as error:
                if not isinstance(error.__context__, _StopParsing):
                    raise
                return
            except httptools.HttpParserError as error:
                self._refuse_malformed(piece, error)
                return
            if self.exchange is not None and self._reading is None:
                if self._length_left >= 0:  # behind chunks, the parser may wait for a last byte
                    self._parser = None
                self._unread = data
                return
        if self._reading is None and self.exchange is None:
            self._check_unfinished_head()

    def _check_unfinished_head(self) -> None:
        """Refuse a head at once whose rest cannot help it."""
        if self._head_bytes > head.MAX_BYTES:
            self._refuse(head.too_large())
        elif self._line_fault:
            self._refuse(head.malformed(self._line_fault))

    def _read_line(self, line: bytes, piece: bytes) -> None:
        """Look at the head's first line, which is `line` and goes on in `piece`."""
        line = (line + piece).lstrip(b"\r\n")
        end = line.find(b"\r\n")
        self._line = line if end < 0 else None
        if end >= 0 and line.find(b" HTTP/", 0, end) < 0:
            # The parser takes RTSP, and waits for an empty line behind a line of HTTP/0.9.
            is_rtsp = line.find(b" RTSP/", 0, end) >= 0
            self._line_fault = "it is RTSP" if is_rtsp else "the version is missing"

    def _parse_on_without_upgrade(self) -> None:
        """Go on after a request that wishes to upgrade, which we do not.

        The parser has stopped behind the head. A new one reads the body, if there is one: it gets
        the head that an ordinary request would have.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._reading is not None:
            self._is_primed = False
            length = b"content-length: %d" % self._length_left
            body = b"transfer-encoding: chunked" if self._length_left < 0 else length
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % body)
            self._is_primed = True

    def _split_head(self, data: bytes) -> tuple[bytes, bytes]:
        """Split data at the end of the head, and count the bytes of the head."""
        if not self._head_bytes:
            self.deadline = time.monotonic() + self.server.timeouts.head
        if self._line is not None:
            self._read_line(self._line, data)
        tail = self._tail
        end = (tail + data).find(HEAD_END) if tail else data.find(HEAD_END)
        if end >= 0:
            end += len(HEAD_END) - len(tail)
            if end < len(data):
                self._head_bytes += end
                return data[:end], data[end:]
        self._head_bytes += len(data)
        self._tail = (tail + data)[-3:]
        return data, b""

    def _refuse_malformed(self, piece: bytes, error: Exception) -> None:
        reason = str(error)
        self.is_closing = True
        if self._reading is not None:  # the route learns that the body never becomes complete
            reading, self._reading = self._reading, None
            reading.break_body()
            return
        if isinstance(error, httptools.HttpParserInvalidMethodError) and _METHOD.match(piece):
            self._refuse(head.unknown_method())
            return
        if piece.startswith(b"PRI * HTTP/2.0"):
            reason = "HTTP/2 without TLS needs --http2"
        self._refuse(head.malformed(reason))

    def _refuse(self, problem: Problem) -> None:
        """Answer a request that cannot be read, and close the connection."""
        self.is_closing = True
        exchange = Exchange(
            self, is_1_1=True, is_head=False, keep_alive=False, expects_continue=False
        )
        exchange.end_body()
        scope = head.scope_of("", "1.1", b"/", b"", [])
        self._take_up(exchange, scope | {head.REFUSAL: problem})

    # Reports of the parser.

    def on_message_begin(self) -> None:
        if self._is_primed and not self._head_bytes:  # it begins behind chunks, in their piece
            self._line = None

    def on_url(self, url: bytes) -> None:
        if self._is_primed:
            self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading is not None:
            return  # a trailer; nobody needs one
        self._headers.append((name.lower(), value.strip(b" \t")))
        if len(self._headers) > head.MAX_LINES:
            self._stop(head.too_large())

    def on_headers_complete(self) -> None:
        if not self._is_primed:
            return
        parser = self._parser
        assert parser is not None
        headers = self._headers
        version = parser.get_http_version()
        problem = head.check(version, headers)
        if problem is None and self._head_bytes > head.MAX_BYTES:
            problem = head.too_large()
        if problem is not None:
            self._stop(problem)
        method = parser.get_method().decode("ascii")
        if self._line_fault:
            self._stop(head.malformed(self._line_fault))
        if method == "CONNECT":
            self._stop(head.unknown_method())
        placed = head.place(self._target, version, headers)
        if isinstance(placed, Problem):
            self._stop(placed)
        self._length_left = head.length_of(headers)
        exchange = Exchange(
            self,
            is_1_1=version == "1.1",
            is_head=method == "HEAD",
            keep_alive=parser.should_keep_alive() and not head.wants_close(headers),
            expects_continue=head.expects_continue(version, headers),
        )
        self._reading = exchange
        self._forget_head()
        path, query = placed
        self._take_up(exchange, head.scope_of(method, version, path, query, headers))

    def on_body(self, data: bytes) -> None:
        if self._reading is not None:
            self._framing_bytes = 0
            self._reading.feed(data)
            if self._reading.num_body_bytes > MAX_BODY_AHEAD:
                self._pause()

    def on_message_complete(self) -> None:
        if self._reading is None:
            return
        assert self._parser is not None
        if not (self._parser.should_upgrade() and self._length_left):
            reading, self._reading = self._reading, None
            reading.end_body()

    def _stop(self, problem: Problem) -> NoReturn:
        self._refuse(problem)
        raise _StopParsing

    def _take_up(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        """Answer a request now, or after those that came before it."""
        scope["client"] = self._client
        scope[PEER] = exchange
        if self.exchange is not None:
            self._ahead = [*(self._ahead or ()), (exchange, scope)]
            return
        self.deadline = math.inf
        self.exchange = exchange
        exchange.begin(self.server.app, scope)

    def _parse_unread(self) -> None:
        """Go on with what the client sent ahead."""
        data, self._unread = self._unread, b""
        self._resume()
        self._parse(data)
        is_last = self.exchange is not None or not self._unread
        if self._has_eof and is_last and not self._end_input() and self._transport is not None:
            self._transport.close()

    def body_taken(self) -> None:
        """Note that the exchange wants more of its body."""
        self._resume()

    def begin_reading(self) -> None:
        """Begin: the server has room for this connection."""
        self.deadline = time.monotonic() + self.server.timeouts.head
        if self._is_waiting:
            self._is_waiting = False
            self._resume()
            early, self._unread = self._unread, b""
            if early:
                self.data_received(early)

    def wait_for_room(self) -> None:
        """Parse nothing until the server has room for this connection."""
        self._is_waiting = True

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    # Writing.

    @property
    def date(self) -> bytes:
        """The `Date` header, of this second."""
        return self.server.date

    def write(self, data: bytes) -> bool:
        """Write data; return True if the kernel took all of it at once."""
        if not data:
            return self.descriptor >= 0
        if self.descriptor < 0:
            if self._transport is not None:
                self._transport.write(data)
            return False
        try:
            num_sent = os.write(self.descriptor, data)
        except OSError:  # full, or broken: the transport finds out
            num_sent = 0
        return num_sent == len(data) or self.write_rest(data[num_sent:])

    def write_rest(self, data: bytes) -> bool:
        """Let the transport write what the kernel did not take; return as `write` does."""
        if self._transport is None:
            return False
        self._transport.write(data)
        if self._transport.get_write_buffer_size() == 0 and not self._transport.is_closing():
            return True
        self.descriptor = -1
        return False

    def limit_write(self) -> None:
        """Close the connection if its client takes nothing for a while."""
        self.deadline = time.monotonic() + self.server.timeouts.stall

    def answered(self, exchange: Exchange) -> None:
        """Go on after a response: with the next request, or with the end of the connection."""
        self.exchange = None
        if not self._unread:
            self._resume()  # nobody may have taken the request's body
        if not exchange.keep_alive or self.is_closing or self.server.is_closing:
            self._close(is_complete=exchange.has_whole_body and not self.is_closing)
        elif self._ahead:
            following, scope = self._ahead.pop(0)
            self._take_up(following, scope)
        elif self._unread:
            asyncio.get_running_loop().call_soon(self._parse_unread)
        elif self._has_eof:
            self._close(is_complete=True)
        elif self._reading is None:
            self.deadline = time.monotonic() + self.server.timeouts.keep_alive

    @property
    def is_idle(self) -> bool:
        """Return True if no exchange is under way, and the connection does not end by itself."""
        return self.exchange is None and not self.is_lingering

    def close_if_idle(self) -> None:
        """Close the connection unless an exchange is under way; after that one, it closes."""
        if self.is_idle:
            self._close(is_complete=True)

    def _close(self, *, is_complete: bool) -> None:
        """Close the connection once all is written. `is_complete` says that the client is done."""
        self.is_closing = True
        self.descriptor = -1
        if self._transport is None:
            return
        if is_complete or self._has_eof:
            self._transport.close()
            return
        self.is_lingering = True
        self._unread = b""
        self.deadline = time.monotonic() + LINGER_S
        self._transport.write_eof()
        self._resume()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self.descriptor = -1
            self._transport.abort()
            if self.exchange is not None:
                self.exchange.gone()  # at once: the transport tells us later

    def time_out(self) -> None:
        """Close the connection: its deadline has passed."""
        self.deadline = math.inf
        if self.exchange is not None or self.is_lingering:
            self.abort()
        elif self._head_bytes:
            self._refuse(head.too_slow(self.server.timeouts.head))
        elif self._transport is not None:
            self._close(is_complete=True)

    @property
    def state(self) -> int:
        """The connection's TCP state."""
        return half_closed.state_of(self._transport)

    def probe(self) -> None:
        """Send something that means nothing, to see whether the client is still there."""
        if self.exchange is not None:
            self.exchange.probe()
