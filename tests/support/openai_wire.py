"""OpenAI's API as bytes on the wire: begin a stream, and take its chunks apart."""

import json
import re
from typing import Any

from tests.support.raw import Connection
from tests.support.servers import RunningServer

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESUMABLE = "X-Penstock-Resumable: true"
DONE = b"data: [DONE]\n\n"
COMMENT = re.compile(rb"^: (?:ping|queue position=.*|status .*)\n", re.MULTILINE)


def begin(server: RunningServer, data: bytes) -> tuple[Connection, str]:
    """Ask for a stream and read its first chunks, to the end of a frame.

    Returns the connection, which holds no part of the next chunk, and the stream's id.
    """
    connection = Connection(server.port).send(data)
    head = connection.head()
    assert head.status == 200
    body = b""
    # The server may cut a send that holds many events at any byte.
    while b"data: " not in body or not body.endswith(b"\n\n"):
        body += connection.chunk()
    return connection, head.headers["x-stream-id"]


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """Return the chunks of a body, which must end with `[DONE]`.

    Comments may stand before a chunk: the server sends them while a stream is silent, for example
    while an engine restarts on a busy machine.
    """
    body = COMMENT.sub(b"", body)
    assert body.endswith(b"\n\n" + DONE)
    assert body.count(b"[DONE]") == 1
    frames = body.removesuffix(DONE).removesuffix(b"\n\n").split(b"\n\n")
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]
