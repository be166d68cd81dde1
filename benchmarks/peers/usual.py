"""The usual way to stream tokens from Python: FastAPI, sse-starlette, a pydantic model per token.

    python -m benchmarks.peers.usual STEP_SOCKET

It follows the tutorials: an async generator puts each of the engine's tokens into a model and dumps
it as JSON, and an `EventSourceResponse` sends it through uvicorn (on uvloop and httptools).
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, Field
from sse_starlette.sse import EventSourceResponse

from benchmarks.peers.steps import Steps, announce, listener


class GenerateRequest(BaseModel):
    """The body of a request to generate."""

    prompt: str
    max_tokens: int = Field(default=100, ge=1, le=1024)
    temperature: float = Field(default=0.7, ge=0.0, le=2.0)
    top_p: float = Field(default=0.95, ge=0.0, le=1.0)
    stream: bool = True


class TokenEvent(BaseModel):
    """The data of one event."""

    token: str
    index: int
    finished: bool = False


def make_app(path: str, port: int) -> FastAPI:
    """Make the application, whose engine listens for steps on the socket `path`."""
    engine: list[Steps] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.append(Steps(path))
        names = ("uvicorn", "fastapi", "starlette", "sse-starlette", "pydantic")
        announce(port, **{name: version(name) for name in names})
        yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"])

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> EventSourceResponse:
        async def events() -> AsyncIterator[str]:
            index = 0
            async for token in engine[0].tokens(request.max_tokens):
                yield TokenEvent(token=token, index=index).model_dump_json()
                index += 1
            yield TokenEvent(token="", index=index, finished=True).model_dump_json()

        return EventSourceResponse(events())

    return app


if __name__ == "__main__":
    bound = listener()
    app = make_app(sys.argv[1], bound.getsockname()[1])
    config = uvicorn.Config(app, log_level="warning", loop="uvloop", http="httptools")
    uvicorn.Server(config).run(sockets=[bound])
