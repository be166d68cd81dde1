"""Serves one TLS handshake with a certificate and a key, in a process that may be aborted.

In: the contents of the two files, as JSON on standard input. Out: `{"reason": ""}` on standard
output if they can be served, or the reason why not. If Granian aborts this process, its own words
are on standard error (see `tls.Pair.check`).
"""

import asyncio
import json
import os
import resource
import socket
import ssl
import sys
from typing import Any

from penstock.web.tls import Pair

HANDSHAKE_TIMEOUT_S = 30.0


def main() -> None:
    """Try the pair on standard input, and report."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    certificate, key = json.load(sys.stdin)
    pair = Pair(certificate.encode("latin-1"), key.encode("latin-1"))
    reason = _reason_of_openssl(pair) or asyncio.run(_reason_of_granian(pair))
    sys.stdout.write(json.dumps({"reason": reason}))
    sys.stdout.flush()
    os._exit(0)  # Granian's threads may still run


def _reason_of_openssl(pair: Pair) -> str:
    """Return why OpenSSL refuses the pair, or "". Its reasons are better than rustls's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        with pair.files() as (certificate, key):
            context.load_cert_chain(certificate, key, password="")  # never ask for one
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not the certificate's"
        if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            return "the key or the signature is too weak"
        return "the certificate and the key are not a pair of PEM files without a password"
    except OSError as error:
        return error.strerror or "the files cannot be read"
    return ""


async def _reason_of_granian(pair: Pair) -> str:
    from penstock.web.granian import GranianServer  # takes long: only if OpenSSL takes the pair

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    with pair.files() as files:
        server = GranianServer(_nothing, listener, 1, http2=False, tls=files)
        serving = asyncio.create_task(server.serve())
        shaking = asyncio.create_task(asyncio.to_thread(_shake_hands, listener.getsockname()))
        await asyncio.wait({serving, shaking}, return_when=asyncio.FIRST_COMPLETED)
    if not shaking.done():
        return "the TLS library ended at once"
    return shaking.result()


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """Answer nothing: no request comes."""


def _shake_hands(address: tuple[str, int]) -> str:
    """Do a handshake as a client that trusts everybody. Return why it fails, or ""."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    try:
        with (
            socket.create_connection(address, timeout=HANDSHAKE_TIMEOUT_S) as raw,
            context.wrap_socket(raw),
        ):
            return ""
    except OSError as error:
        return f"a TLS handshake with it fails ({type(error).__name__})"


if __name__ == "__main__":
    main()
