"""A zero-cost engine core for vLLM's front end in Rust: speaks vLLM's handshake and messages.

    python -m benchmarks.peers.engine_core HANDSHAKE_ADDRESS STEP_SOCKET TOKEN_ID

It stands where vLLM's `EngineCoreProc` stands (vllm/v1/engine/core.py): it connects to the front
end's handshake socket (HELLO, INIT, READY), then receives requests from a ROUTER socket and pushes
outputs to a PULL socket, in MessagePack. It computes nothing. A request's first token comes at
once. Each datagram on STEP_SOCKET is a step: every request gets one token, all in one message, as
vLLM's scheduler sends them.

In: requests, aborts, steps; other messages are ignored. Out: outputs. Not known here: which program
the front end is.
"""

import socket
import sys
import time
from typing import Any

import msgspec
import zmq

IDENTITY = (0).to_bytes(2, "little")  # data-parallel rank 0
ADD, ABORT = b"\x00", b"\x01"
LENGTH = 1  # FinishReason.LENGTH
MAX_TOKENS_DEFAULT = 16
CONTEXT = 4096
HANDSHAKE_LIMIT_MS = 60_000

Output = list[Any]
"""EngineCoreOutput as an array: request id, token ids, then None up to the finish reason."""


def ready_response() -> dict[str, Any]:
    """Return the fields of vLLM's `EngineCoreReadyResponse`."""
    return {
        "max_model_len": CONTEXT,
        "num_gpu_blocks": 1_000_000,
        "block_size": 16,
        "dp_stats_address": None,
        "dtype": "float32",
        "vllm_version": "0.33.0",
        "world_size": 1,
        "data_parallel_size": 1,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "data_parallel_rank": 0,
        "max_num_seqs": 1_000_000,
        "max_num_batched_tokens": 1_000_000,
        "instance_id": "benchmark",
        "supports_lora": False,
        "max_loras": 0,
    }


def shake_hands(context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> tuple[str, str]:
    """Register with the front end. Returns the addresses of its input and output sockets."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, IDENTITY)
    dealer.connect(address)
    said = {"local": False, "headless": True}
    dealer.send(msgspec.msgpack.encode({"status": "HELLO", **said}))
    if not dealer.poll(HANDSHAKE_LIMIT_MS):
        raise SystemExit("the front end does not answer")
    addresses = msgspec.msgpack.decode(dealer.recv())["addresses"]
    dealer.send(msgspec.msgpack.encode({"status": "READY", **said}))
    dealer.close(linger=5000)
    return addresses["inputs"][0], addresses["outputs"][0]


class EngineCore:
    """The running requests, and the two sockets to the front end."""

    def __init__(self, address: str, step: str, token_id: int) -> None:
        self._step = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._step.bind(step)  # before the front end serves, because then the steps may begin
        context = zmq.Context()
        inputs, outputs = shake_hands(context, address)
        self._token = [token_id]
        self._running: dict[str, tuple[Output, int]] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._input = context.socket(zmq.DEALER)
        self._input.setsockopt(zmq.IDENTITY, IDENTITY)
        self._input.connect(inputs)
        self._input.send(msgspec.msgpack.encode(ready_response()))
        self._output = context.socket(zmq.PUSH)
        self._output.connect(outputs)

    def serve(self) -> None:
        """Serve until killed."""
        poller = zmq.Poller()
        poller.register(self._input, zmq.POLLIN)
        poller.register(self._step, zmq.POLLIN)
        while True:
            ready = [each for each, _ in poller.poll()]
            if self._input in ready:
                self._take_requests()
            if self._step.fileno() in ready:
                self._step.recv(16)
                self._push(list(self._running))

    def _take_requests(self) -> None:
        added = []
        while self._input.poll(0):
            kind, body, *_ = self._input.recv_multipart()
            if kind == ADD:
                request = msgspec.msgpack.decode(body)
                limit = request[3].get("max_tokens") or MAX_TOKENS_DEFAULT
                self._running[request[0]] = ([request[0], self._token], limit)
                added.append(request[0])
            elif kind == ABORT:
                for request_id in msgspec.msgpack.decode(body):
                    self._running.pop(request_id, None)
        self._push(added)

    def _push(self, request_ids: list[str]) -> None:
        """Give one token to each of these requests, in one message."""
        outputs, ended = [], []
        for request_id in request_ids:
            output, left = self._running[request_id]
            if left == 1:
                output = [*output, None, None, None, LENGTH]
                ended.append(request_id)
                del self._running[request_id]
            else:
                self._running[request_id] = (output, left - 1)
            outputs.append(output)
        if outputs:
            self._output.send(
                self._encode([0, outputs, None, time.monotonic(), None, ended or None])
            )


def main() -> None:
    """Run the command."""
    address, step, token_id = sys.argv[1:]
    EngineCore(address, step, int(token_id)).serve()


if __name__ == "__main__":
    main()
