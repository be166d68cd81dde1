"""The certificate and key that the server uses for TLS."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import StartError


@dataclass(frozen=True)
class Tls:
    """A certificate file (with its intermediate certificates) and its key file, both PEM."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raise OSError (or its subclass ssl.SSLError) if the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key, password="")  # never ask for one

    def version(self) -> tuple[int, ...]:
        """Return a value that changes when a file changes."""
        version: list[int] = []
        for path in (self.certificate, self.key):
            try:
                status = path.stat()
            except OSError:
                version += (0, 0)
            else:
                version += (status.st_mtime_ns, status.st_ino)
        return tuple(version)


def reason_of(error: OSError) -> str:
    """Say why the files cannot be used, without a path."""
    if isinstance(error, ssl.SSLError):
        return "the certificate and the key are not a matching pair of PEM files without a password"
    return error.strerror or type(error).__name__


def tls_of(certificate: str, key: str) -> Tls | None:
    """Return TLS with these files, or None if neither is given. Raises StartError."""
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise StartError(
            "TLS needs a certificate and its key.", "Give both: --tls-cert FILE --tls-key FILE"
        )
    tls = Tls(Path(certificate), Path(key))
    try:
        tls.check()
    except OSError as error:
        raise StartError(
            f"The certificate cannot be used: {reason_of(error)}.",
            "--tls-cert is a PEM file with the certificate and its intermediate certificates,"
            " --tls-key a PEM file with its key.",
        ) from None
    return tls
