"""A peer that vanishes, as if its cable were pulled: it sends nothing more, no FIN and no RST.

The client runs in its own network namespace, whose link to the server is cut.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.servers import serve

# The kernel gives up ten seconds after the stall timeout (see server.open_listener).
STALL_TIMEOUT_S = 1.0
GONE_WITHIN_S = 20.0
SERVER, CLIENT = "10.213.7.1", "10.213.7.2"

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


def run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def link() -> Iterator[tuple[str, str]]:
    """Make a cable; yield the name of our end and the process whose namespace has the other end."""
    if not (shutil.which("ip") and shutil.which("nsenter") and shutil.which("unshare")):
        pytest.skip("this machine lacks ip, unshare or nsenter (Debian: iproute2, util-linux)")
    ours, theirs = f"pen{os.getpid() % 10**6}a", f"pen{os.getpid() % 10**6}b"
    holder = subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        made = holder.stdout.readline() and run(
            "ip", "link", "add", ours, "type", "veth", "peer", "name", theirs
        )
        if not made:
            pytest.skip("this machine does not allow network namespaces")
        inside = ("nsenter", "--net", "--target", str(holder.pid))
        assert run("ip", "link", "set", theirs, "netns", str(holder.pid))
        assert run("ip", "address", "add", f"{SERVER}/24", "dev", ours)
        assert run("ip", "link", "set", ours, "up")
        assert run(*inside, "ip", "address", "add", f"{CLIENT}/24", "dev", theirs)
        assert run(*inside, "ip", "link", "set", theirs, "up")
        yield ours, str(holder.pid)
    finally:
        run("ip", "link", "delete", ours)
        holder.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_a_peer_that_vanishes_is_noticed_and_its_slot_is_free() -> None:
    with (
        link() as (cable, inside),
        serve(
            "--insecure",
            engine="mock",
            host=SERVER,
            mock_interval=0.1,
            stall_timeout=STALL_TIMEOUT_S,
            engine_arg=["slots=1", "length=1000"],
        ) as server,
    ):
        vanishing = subprocess.Popen(
            [
                *("nsenter", "--net", "--target", inside),
                *(sys.executable, "-c", READ_FOR_EVER, SERVER, str(server.port)),
            ],
            stdout=subprocess.PIPE,
        )
        try:
            assert vanishing.stdout is not None
            assert vanishing.stdout.readline() == b"reading\n"
            assert run("ip", "link", "set", cable, "down")
            pulled = time.monotonic()
            # This request waits in the queue until the server notices and frees the only slot.
            asked = subprocess.run(
                [sys.executable, "-c", ASK, SERVER, str(server.port)],
                check=True,
                capture_output=True,
                timeout=GONE_WITHIN_S,
            )
            assert b'"finish_reason":"length"' in asked.stdout
            assert time.monotonic() - pulled < GONE_WITHIN_S
        finally:
            vanishing.kill()
            vanishing.communicate()


ASK = """
import sys, urllib.request
request = urllib.request.Request(
    f"http://{sys.argv[1]}:{sys.argv[2]}/generate",
    b'{"prompt": "x", "max_tokens": 1, "stream": false}',
    {"Content-Type": "application/json"},
)
print(urllib.request.urlopen(request).read().decode())
"""
