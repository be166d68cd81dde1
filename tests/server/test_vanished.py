"""A peer that vanishes, as if its cable were pulled: it sends nothing more, no FIN and no RST."""

import subprocess
import sys
import time

from tests.faults.network import HERE, network, within
from tests.support.raw import Connection, generate
from tests.support.servers import serve

# The kernel gives up ten seconds after the stall timeout (see server.open_listener).
STALL_TIMEOUT_S = 1.0
GONE_WITHIN_S = 60.0

READ_FOR_EVER = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
body = b'{"prompt": "x", "max_tokens": 1000}'
client.sendall(
    b"POST /generate HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\n"
    b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body
)
client.recv(1)
print("reading", flush=True)
while client.recv(65536):
    pass
"""


def test_a_peer_that_vanishes_is_noticed_and_its_slot_is_free() -> None:
    with network() as net:
        cable = net.link(HERE, net.machine("client"))
        host = cable.near.address
        with serve(
            "--insecure",
            engine="mock",
            host=host,
            mock_interval=0.1,
            stall_timeout=STALL_TIMEOUT_S,
            engine_arg=["slots=1", "length=1000"],
        ) as server:
            reading = [*within(cable.far.machine).split(), sys.executable, "-c", READ_FOR_EVER]
            vanishing = subprocess.Popen([*reading, host, str(server.port)], stdout=subprocess.PIPE)
            try:
                assert vanishing.stdout is not None
                assert vanishing.stdout.readline() == b"reading\n"
                cable.cut()
                pulled = time.monotonic()
                # This request waits in the queue until the server notices and frees the only slot.
                with Connection(server.port, host, patience=GONE_WITHIN_S) as waiting:
                    answer = waiting.send(generate(max_tokens=1, stream=False)).response()
                assert answer.json()["finish_reason"] == "length"
                assert time.monotonic() - pulled < GONE_WITHIN_S
            finally:
                vanishing.kill()
                vanishing.communicate()
