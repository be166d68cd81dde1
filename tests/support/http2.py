"""An HTTP/2 client that sends what no proper client would."""

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.support.wire import Wire

Headers = list[tuple[bytes, bytes]]


class Http2:
    """A connection in HTTP/2. Headers are sent as they are given, right or wrong."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.is_over = False
        """True if the server has ended the connection, by GOAWAY or FIN."""
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._h2.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        self._wire.send(self._h2.data_to_send())

    def ask(self, stream: int, headers: Headers, *, body: bytes | None = None) -> None:
        """Send a request; with a `body`, even an empty one, also a frame of data."""
        self._h2.send_headers(stream, headers, end_stream=body is None)
        if body is not None:
            self._h2.send_data(stream, body, end_stream=True)
        self._flush()

    def send_trailers(self, stream: int, trailers: Headers) -> None:
        """Send headers after a body that has not ended yet."""
        self._h2.send_headers(stream, trailers, end_stream=True)
        self._flush()

    def begin(self, stream: int, headers: Headers, body: bytes = b"") -> None:
        """Send a request without its end."""
        self._h2.send_headers(stream, headers)
        if body:
            self._h2.send_data(stream, body)
        self._flush()

    def reset(self, stream: int) -> None:
        """Take a request back."""
        self._h2.reset_stream(stream)
        self._flush()

    async def outcome(self, stream: int) -> str:
        """Wait for the end of a stream: a status, "reset", or "over" for the connection's end."""
        status = ""
        while not self.is_over:
            received = await self._wire.take()
            if not received:
                break
            for event in self._h2.receive_data(received):
                if isinstance(event, h2.events.ConnectionTerminated):
                    self.is_over = True
                elif getattr(event, "stream_id", 0) != stream:
                    continue
                elif isinstance(event, h2.events.ResponseReceived):
                    (status,) = (v.decode() for n, v in event.headers or () if n == b":status")
                elif isinstance(event, h2.events.DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamEnded):
                    self._flush()
                    return status
                elif isinstance(event, h2.events.StreamReset):
                    return status or "reset"
            self._flush()
        self.is_over = True
        return status or "over"
