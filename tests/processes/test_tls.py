"""Several processes behind one address over TLS and HTTP/2, which Granian serves."""

import ssl
from pathlib import Path

import httpx
import psutil
import trustme

from tests.support.servers import RunningServer, serve
from tests.support.several import processes_of
from tests.support.waiting import eventually

PATIENCE_S = 40.0
NUM_ASKED = 20


def client_of(server: RunningServer, authority: trustme.CA, *, http2: bool) -> httpx.Client:
    """Return a client that opens a new connection for every request."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(
        base_url=server.url, verify=context, http2=http2, limits=limits, timeout=PATIENCE_S
    )


def test_two_processes_serve_tls_and_one_goes_on_while_the_other_is_replaced(
    tmp_path: Path,
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    with (
        serve(
            engine="mock", processes=2, mock_interval=0.01, tls_cert=certificate, tls_key=key
        ) as server,
        client_of(server, authority, http2=True) as new,
        client_of(server, authority, http2=False) as old,
    ):

        def answers(client: httpx.Client) -> bool:
            answer = client.post(
                "/generate", json={"prompt": "x", "max_tokens": 2, "stream": False}
            )
            return answer.status_code == 200

        assert all(answers(client) for client in (new, old) for _ in range(NUM_ASKED))
        killed = processes_of(server)[1]
        killed.kill()
        psutil.wait_procs([killed], PATIENCE_S)
        assert all(answers(client) for client in (new, old) for _ in range(NUM_ASKED))

        def states() -> dict[str, str]:
            found: dict[str, str] = new.get("/health").json()["processes"]
            return found

        assert eventually(lambda: states() == {"1": "ready", "2": "ready"}, PATIENCE_S)
        killed = processes_of(server)[2]  # now the new process must serve alone
        killed.kill()
        psutil.wait_procs([killed], PATIENCE_S)
        assert all(answers(client) for client in (new, old) for _ in range(NUM_ASKED))
