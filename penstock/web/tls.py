"""The certificate and key that the server uses for TLS, as files and as a snapshot of the files.

In: paths. Out: a `Pair` that the TLS library can serve, or the reason why it cannot.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from penstock.errors import StartError

MAX_FILE_BYTES = 1024 * 1024
TRIAL_TIMEOUT_S = 60.0

# What rustls or Granian says when it ends the trial, our reason, and the next step.
_REFUSALS = (
    (
        "failed to parse private key",
        "the TLS library (rustls) cannot use this kind of key",
        "Use an EC key on the curve P-256 or P-384, an Ed25519 key, or an RSA key of 2048 to 8192"
        " bits. For example: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
    ),
    (
        "NoCertificatesPresented",
        "the TLS library (rustls) finds no certificate in the file",
        "The file of --tls-cert must begin with -----BEGIN CERTIFICATE-----, not with a byte order"
        " mark (BOM) or TRUSTED CERTIFICATE. Convert it: openssl x509 -in FILE -out cert.pem",
    ),
    (
        "`None` value",
        "the TLS library (rustls) finds no key in the file",
        "The file of --tls-key must begin with -----BEGIN PRIVATE KEY-----, not with a byte order"
        " mark (BOM). Convert it: openssl pkey -in FILE -out key.pem",
    ),
)
_HINT = (
    "--tls-cert is a PEM file with the certificate and its intermediate certificates,"
    " --tls-key a PEM file with its key."
)
_PANIC = re.compile(r"panicked at [^\n]*\n([^\n]+)")


class UnservableError(Exception):
    """The reason why a certificate and its key cannot be served, and the next step in `hint`."""

    def __init__(self, reason: str, hint: str = _HINT) -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True, repr=False)
class Pair:
    """The contents of a certificate file and of its key file, read at one moment."""

    certificate: bytes
    key: bytes

    @contextlib.contextmanager
    def files(self) -> Iterator[tuple[str, str]]:
        """Yield two paths that show exactly these contents, in this process only."""
        with contextlib.ExitStack() as stack:
            paths = []
            for content in (self.certificate, self.key):
                file = stack.enter_context(_unnamed_file())
                file.write(content)
                file.seek(0)
                paths.append(f"/dev/fd/{file.fileno()}")
            yield paths[0], paths[1]

    async def check(self) -> None:
        """Serve one handshake in a process of its own.

        Granian ends its whole process if it cannot use a certificate or a key. Raises
        UnservableError, or OSError if there was no trial (TimeoutError if it took too long).
        """
        sent = json.dumps([self.certificate.decode("latin-1"), self.key.decode("latin-1")])
        trial = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "penstock.web.tls_trial"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )
        try:
            async with asyncio.timeout(TRIAL_TIMEOUT_S):
                said, complaint = await trial.communicate(sent.encode())
        finally:
            if trial.returncode is None:
                trial.kill()
        _judge(said.decode("utf-8", "replace"), complaint.decode("utf-8", "replace"))


def _unnamed_file() -> IO[bytes]:
    """Return a file without a name. On Linux it is in memory, so it works if the disk is full."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("penstock-tls"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _judge(said: str, complaint: str) -> None:
    """Raise UnservableError unless the trial said that all is well."""
    if said.startswith("{"):
        reason = json.loads(said)["reason"]
        if reason:
            raise UnservableError(reason)
        return
    for word, reason, hint in _REFUSALS:
        if word in complaint:
            raise UnservableError(reason, hint)
    found = _PANIC.search(complaint)
    last = found[1] if found else (complaint.strip().splitlines() or ["it ended at once"])[-1]
    raise UnservableError(f"the TLS library (rustls) refuses it: {last[:200]}")


@dataclass(frozen=True)
class Tls:
    """A certificate file (with its intermediate certificates) and its key file, both PEM."""

    certificate: Path
    key: Path

    def read(self) -> Pair:
        """Return the contents of both files. Raises UnservableError."""
        contents = []
        for path, flag in ((self.certificate, "--tls-cert"), (self.key, "--tls-key")):
            try:
                with path.open("rb") as file:
                    content = file.read(MAX_FILE_BYTES + 1)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise UnservableError(f"the file of {flag}: {reason}") from None
            if len(content) > MAX_FILE_BYTES:
                raise UnservableError(f"the file of {flag} is larger than 1 MiB")
            contents.append(content)
        return Pair(*contents)

    def version(self) -> tuple[int, ...]:
        """Return a value that changes when a file changes."""
        version: list[int] = []
        for path in (self.certificate, self.key):
            try:
                status = path.stat()
            except OSError:
                version += (0, 0, 0)
            else:
                version += (status.st_mtime_ns, status.st_ino, status.st_size)
        return tuple(version)


def tls_of(certificate: str, key: str) -> Tls | None:
    """Return TLS with these files, or None if neither is given. Raises StartError."""
    if not certificate and not key:
        return None
    if not certificate or not key:
        raise StartError(
            "TLS needs a certificate and its key.", "Give both: --tls-cert FILE --tls-key FILE"
        )
    return Tls(Path(certificate), Path(key))


async def first_pair(tls: Tls) -> Pair:
    """Return the pair that the server begins with. Raises StartError if it cannot be served."""
    try:
        pair = tls.read()
        await pair.check()
    except UnservableError as error:
        raise StartError(f"The certificate cannot be used: {error}.", error.hint) from None
    except OSError as error:
        reason = error.strerror or "it took too long"
        raise StartError(f"The certificate cannot be tried: {reason}.", "Start again.") from None
    return pair
