"""The two ends that speak HTTP/1.1: Penstock's own (plain HTTP) and Granian (TLS)."""

import contextlib
import ssl
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support.servers import RunningServer, serve
from tests.support.wire import Wire, connected

NAMES = ("own", "granian")
BODY_TIMEOUT_S = 3.0  # a machine may stand still for a second
PATIENT: dict[str, object] = {"module": "tests.wire.patient", "body_timeout": 60}
"""The flags of a server that gives up nothing within a test, on a busy machine either."""


@dataclass
class End:
    """A server at one of the two ends. `context` is for TLS."""

    name: str
    server: RunningServer
    context: ssl.SSLContext | None

    @property
    def is_own(self) -> bool:
        return self.name == "own"

    def connect(self, *, receive_buffer: int = 0) -> AbstractAsyncContextManager[Wire]:
        """Open a connection that speaks HTTP/1.1."""
        return connected(self.server.address, self.context, receive_buffer=receive_buffer)


@contextlib.contextmanager
def serve_end(
    name: str, folder: Path, *arguments: str, protocol: str = "http/1.1", **flags: object
) -> Iterator[End]:
    """Yield a server with the mock engine and short timeouts at this end.

    Over TLS its clients ask for `protocol`.
    """
    flags = {
        "module": "tests.wire.short",
        "engine": "mock",
        "mock_interval": 0,
        "body_timeout": BODY_TIMEOUT_S,
        **flags,
    }
    context = None
    if name == "granian":
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        certificate, key = folder / "certificate.pem", folder / "key.pem"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        flags |= {"tls_cert": certificate, "tls_key": key}
        context = ssl.create_default_context()
        context.set_alpn_protocols([protocol])
        authority.configure_trust(context)
    with serve(*arguments, **flags) as server:
        yield End(name, server, context)
