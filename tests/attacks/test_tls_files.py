"""Certificates and keys that the server cannot use (D9): a named error, and nothing changes."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.web.tls import Tls, UnservableError
from tests.attacks.certificates import BAD, GOOD, Files, TlsFiles, good, trusting
from tests.attacks.honest import STEADY, honest_client
from tests.support.raw import Connection
from tests.support.servers import RunningServer, refuses_to_start, serve
from tests.support.waiting import eventually

# Each is a process that serves a handshake, so not all of them at once.
NUM_AT_ONCE = 4


async def verdicts(folder: Path, kinds: dict[str, Callable[[], Files]]) -> dict[str, str]:
    """Return the reason against each kind of files, or "" if they can be served."""
    free = asyncio.Semaphore(NUM_AT_ONCE)

    async def verdict(kind: str) -> str:
        own = folder / str(sorted(kinds).index(kind))
        own.mkdir()
        files = TlsFiles(own, kinds[kind]())
        try:
            async with free:
                await Tls(files.certificate, files.key).read().check()
        except UnservableError as error:
            return str(error) if error.hint else "without a next step"
        return ""

    return dict(zip(kinds, await asyncio.gather(*map(verdict, kinds)), strict=True))


async def test_every_kind_of_unusable_files_has_a_reason(tmp_path: Path) -> None:
    found = await verdicts(tmp_path, BAD)
    assert [kind for kind, reason in found.items() if not reason] == []
    assert found["P-521"] == "the TLS library (rustls) cannot use this kind of key"
    assert found["another's key"] == "the key is not the certificate's"


async def test_every_kind_of_usable_files_is_taken(tmp_path: Path) -> None:
    assert await verdicts(tmp_path, GOOD) == dict.fromkeys(GOOD, "")


@pytest.mark.parametrize("kind", ["P-521", "BOM before the certificate"])
def test_files_that_openssl_takes_and_rustls_does_not_are_an_error_at_start(
    tmp_path: Path, kind: str
) -> None:
    said = refuses_to_start(engine="mock", **TlsFiles(tmp_path, BAD[kind]()).flags())
    assert "The certificate cannot be used: the TLS library (rustls)" in said
    assert "openssl" in said  # the next step


def shown_by(server: RunningServer) -> bytes | None:
    """Return the certificate that a new connection gets."""
    with Connection(server.port, context=trusting()) as connection:
        assert isinstance(connection.socket, ssl.SSLSocket)
        return connection.socket.getpeercert(binary_form=True)


def test_a_change_that_cannot_be_served_changes_nothing(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path, good())

    def num_refused() -> int:
        return "".join(server.output).count("keeping the old certificate: ")

    with (
        serve(module="tests.wire.short", **STEADY, **files.flags()) as server,
        honest_client(server, context=trusting()),
    ):
        before = shown_by(server)
        for kind in ("P-521", "BOM before the key", "TRUSTED CERTIFICATE", "nothing"):
            refused = num_refused()
            files.write(BAD[kind]())
            # Twice, if the server looked between the two files.
            assert eventually(lambda refused=refused: num_refused() > refused), kind  # type: ignore[misc]
            assert shown_by(server) == before, kind
        files.write(good())
        assert eventually(lambda: shown_by(server) != before)
    assert "panicked" not in "".join(server.output)
