"""The engine core of `benchmarks.peers` speaks as vLLM's own does.

The front end is a few sockets here, as in vLLM's `EngineCoreClient`. If this machine has the
program vllm-rs, which is no part of this repository, the real one is tested, too.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

if sys.platform != "linux":
    pytest.skip("the client needs epoll", allow_module_level=True)

from benchmarks.overhead.client import stepper
from benchmarks.peers.engine_core import IDENTITY, LENGTH
from benchmarks.peers.measuring import close, open_streams
from benchmarks.peers.servers import Peer, hub_model
from benchmarks.peers.vllm_rs import HOW, find_vllm_rs, vllm_rs

TOKEN_ID = 691
PATIENCE_MS = 60_000  # the engine core's process may begin late on a busy machine
MESSAGEPACK = msgspec.msgpack


class FrontEnd:
    """What vLLM's front end does with an engine core: a handshake, requests, outputs."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self.handshake, self.address = bound(context, zmq.ROUTER)
        self._input, self._input_address = bound(context, zmq.ROUTER)
        self._output, self._output_address = bound(context, zmq.PULL)

    def shake_hands(self) -> dict[str, Any]:
        """Answer HELLO, wait for READY and for what the engine core says of itself."""
        identity, hello = received(self.handshake)
        assert (identity, hello["status"]) == (IDENTITY, "HELLO")
        addresses = {"inputs": [self._input_address], "outputs": [self._output_address]}
        init = {"addresses": addresses, "parallel_config": {}}
        self.handshake.send_multipart([identity, MESSAGEPACK.encode(init)])
        assert received(self.handshake)[1]["status"] == "READY"
        ready: dict[str, Any] = received(self._input)[1]
        return ready

    def send(self, kind: bytes, body: object) -> None:
        self._input.send_multipart([IDENTITY, kind, MESSAGEPACK.encode(body)])

    def add(self, request_id: str, max_tokens: int) -> None:
        """Send an `EngineCoreRequest`, as far as the engine core reads it."""
        self.send(b"\x00", [request_id, [1, 2], None, {"max_tokens": max_tokens}, None, 0.0])

    def outputs(self) -> list[Any]:
        """Return the outputs of the next message, as arrays."""
        assert self._output.poll(PATIENCE_MS)
        engine_index, outputs, *_ = MESSAGEPACK.decode(self._output.recv())
        assert engine_index == 0
        found: list[Any] = outputs
        return found


def bound(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> tuple["zmq.Socket[bytes]", str]:
    made = context.socket(kind)
    port = made.bind_to_random_port("tcp://127.0.0.1")
    return made, f"tcp://127.0.0.1:{port}"


def received(router: "zmq.Socket[bytes]") -> tuple[bytes, Any]:
    assert router.poll(PATIENCE_MS)
    identity, body = router.recv_multipart()
    return identity, MESSAGEPACK.decode(body)


@pytest.fixture
def core(tmp_path: Path) -> Iterator[tuple[FrontEnd, socket.socket]]:
    """A front end with an engine core behind it, and the socket for the engine core's steps."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front = FrontEnd(context)
    with tempfile.TemporaryDirectory() as folder:
        step = f"{folder}/step"
        command = [sys.executable, "-m", "benchmarks.peers.engine_core"]
        process = subprocess.Popen([*command, front.address, step, str(TOKEN_ID)])
        try:
            assert front.shake_hands()["max_model_len"] > 0
            with stepper(step) as steps:
                yield front, steps
        finally:
            process.kill()
            process.wait()
            context.destroy(linger=0)


def test_the_first_token_comes_at_once_and_then_one_with_each_step(
    core: tuple[FrontEnd, socket.socket],
) -> None:
    front, steps = core
    front.add("a", 2)
    assert front.outputs() == [["a", [TOKEN_ID]]]
    front.add("b", 3)
    assert front.outputs() == [["b", [TOKEN_ID]]]
    steps.send(b"step")
    last = ["a", [TOKEN_ID], None, None, None, LENGTH]
    assert front.outputs() == [last, ["b", [TOKEN_ID]]]
    steps.send(b"step")
    assert front.outputs() == [["b", [TOKEN_ID], None, None, None, LENGTH]]


def test_an_aborted_request_gets_no_more_tokens(core: tuple[FrontEnd, socket.socket]) -> None:
    front, steps = core
    for request_id in ("a", "b"):
        front.add(request_id, 10)
        front.outputs()
    front.send(b"\x01", ["a"])
    front.add("c", 10)
    assert front.outputs() == [["c", [TOKEN_ID]]]
    steps.send(b"step")
    assert [output[0] for output in front.outputs()] == ["b", "c"]


def test_vllms_own_front_end_takes_it() -> None:
    program = find_vllm_rs()
    if program is None:
        pytest.skip(HOW)
    with hub_model() as model:
        peer = Peer("vllm-rs", lambda: vllm_rs(program, model), "/v1/completions")
        with peer.start() as server:
            streams = open_streams(peer, server, num=5, max_tokens=12)
            timing = streams.lockstep(server.step, 10)
            close(streams, server)
    assert len(timing.latencies) == 5 * 10
