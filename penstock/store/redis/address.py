"""The store's address: `redis://` or `rediss://`, host, port, database and options."""

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from penstock.errors import StartError

EXAMPLE = "Use redis://HOST:PORT/DB, or rediss:// for TLS."


@dataclass(frozen=True)
class Address:
    """Where the store is, and how to log in. `str()` and `repr()` leave the credentials out."""

    host: str
    port: int
    db: int
    tls: bool
    wait: int
    """How many of the store's own replicas must confirm each write."""
    username: str = field(repr=False)
    password: str = field(repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the context that verifies the server's certificate, or None without TLS.

        The authorities are the system's, or those of SSL_CERT_FILE.
        """
        return ssl.create_default_context() if self.tls else None


def parse_address(url: str, username: str = "", password: str = "") -> Address:
    """Return the address. Raises StartError, without a part of `url`: it may hold a password.

    `username` and `password` win over those in the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        db = int(parts.path.strip("/") or 0)
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        wait = int(options.pop("wait", ["0"])[0])
    except ValueError:
        raise StartError("The address of the log's store cannot be read.", EXAMPLE) from None
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or parts.fragment:
        raise StartError("The address of the log's store is not complete.", EXAMPLE)
    if options or not 0 <= wait <= 9 or db < 0:
        raise StartError(
            "The address of the log's store has an option or number that is not allowed.",
            "The only option is ?wait=N: how many of the store's replicas confirm each write.",
        )
    return Address(
        host=parts.hostname,
        port=port,
        db=db,
        tls=parts.scheme == "rediss",
        wait=wait,
        username=username or unquote(parts.username or ""),
        password=password or unquote(parts.password or ""),
    )
