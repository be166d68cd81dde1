"""Bodies that are made to take time or memory: the streams beside them go on.

Each body is as large as a body may be. The server must refuse it, or read it, without a pause of
the honest stream and without much memory.
"""

import contextlib
import gzip
import hashlib
import json
import re
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.api.native.fields import GenerateRequest
from penstock.api.openai.chat import ChatRequest
from penstock.api.openai.completion import CompletionRequest
from penstock.api.openai.responses.fields import ResponseRequest
from penstock.web.strict_json import MAX_CONTAINERS, MAX_NAMES, MAX_VALUES
from tests.attacks.honest import STEADY, honest_client
from tests.support.raw import Connection, ask, post, request
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

MAX_BYTES = 4 * 1024 * 1024
LONGEST_PAUSE_S = 5.0
"""A body stopped all streams for 8 to 10 seconds before; now a pause takes milliseconds."""
MOST_GROWTH = 300 * 1024 * 1024
"""One body took 3.2 GB before. What a body may hold takes up to 100 MiB while it is parsed."""
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
NATIVE = "/generate"


def filled(before: str, item: str, after: str, *, beyond: bool = False) -> bytes:
    """Return `before`, as many `item`s as a body may have, and `after`.

    `beyond` gives as many as fit into the bytes of a body, which is more than a body may have.
    """
    num = (MAX_BYTES - 64 - len(before) - len(after)) // (len(item) + 1)
    if not beyond:
        num_containers = item.count("[") + item.count("{")
        num = min(num, (MAX_VALUES - 8) // (item.count(",") + 1))
        num = min(num, (MAX_CONTAINERS - 8) // num_containers if num_containers else num)
    return (before + ",".join([item] * num) + after).encode()


def named(before: str, after: str, num: int = MAX_NAMES - 8) -> bytes:
    """Return an object with this many names."""
    return (before + ",".join(f'"k{number}":1' for number in range(num)) + after).encode()


TURN = '{"role":"user","content":"Hi"}'
HELLO = f'"max_tokens":1,"messages":[{TURN}]'
TEXT = '"max_tokens":1,"prompt":"Hi"'
OTHER_TURN = named('{"role":"user","content":"Hi",', "}").decode()
HOSTILE: dict[str, tuple[str, bytes]] = {
    "content": (CHAT, filled('{"messages":[{"role":"user","content":[', "0", "]}]}")),
    "parts": (
        CHAT,
        filled('{"messages":[{"role":"user","content":[', '{"type":"text","text":1}', "]}]}"),
    ),
    "modalities": (CHAT, filled("{" + HELLO + ',"modalities":[', "0", "]}")),
    "messages of numbers": (CHAT, filled('{"messages":[', "0", "]}")),
    "messages of lists": (CHAT, filled('{"messages":[', "[]", "]}")),
    "messages of objects": (CHAT, filled('{"messages":[', "{}", "]}")),
    "messages": (CHAT, filled('{"max_tokens":1,"messages":[', TURN, "]}")),
    "calls": (
        CHAT,
        filled(
            '{"max_tokens":1,"messages":[{"role":"assistant","tool_calls":[',
            '{"function":{}}',
            "]}]}",
        ),
    ),
    "unknown fields": (CHAT, named("{" + HELLO + ",", "}")),
    "unknown fields of many turns": (
        CHAT,
        filled('{"max_tokens":1,"messages":[', OTHER_TURN, "]}"),
    ),
    "metadata": (CHAT, named("{" + HELLO + ',"metadata":{', "}}")),
    "tools": (CHAT, filled("{" + HELLO + ',"tools":[', '{"type":1}', "]}")),
    "tool choice": (
        CHAT,
        filled(
            "{" + HELLO + ',"tool_choice":{"type":"allowed_tools","allowed_tools":{"tools":[',
            "{}",
            "]}}}",
        ),
    ),
    "a schema": (CHAT, filled("{" + HELLO + ',"guided_json":{"enum":[', "[]", "]}}")),
    "a schema as text": (CHAT, filled("{" + HELLO + ',"guided_json":"[', "[]", ']"}', beyond=True)),
    "arguments as text": (
        CHAT,
        filled(
            '{"max_tokens":1,"messages":[{"role":"assistant","tool_calls":[{"id":"a",'
            '"type":"function","function":{"name":"a","arguments":"[',
            "[]",
            ']"}}]}]}',
            beyond=True,
        ),
    ),
    "a structural tag": (
        CHAT,
        filled("{" + HELLO + ',"response_format":{"type":"structural_tag","format":[', "[]", "]}}"),
    ),
    "template variables": (
        CHAT,
        filled("{" + HELLO + ',"chat_template_kwargs":{"a":[', "0", "]}}"),
    ),
    "stop strings": (COMPLETION, filled("{" + TEXT + ',"stop":[', "0", "]}")),
    "stop token ids": (COMPLETION, filled("{" + TEXT + ',"stop_token_ids":[', '"a"', "]}")),
    "guided choices": (COMPLETION, filled("{" + TEXT + ',"guided_choice":[', "0", "]}")),
    "prompts": (COMPLETION, filled('{"prompt":[', "[]", "]}")),
    "mixed token ids": (COMPLETION, filled('{"prompt":[1.5,', "1", "]}")),
    "logit bias": (COMPLETION, named("{" + TEXT + ',"logit_bias":{', "}}")),
    "native messages": (NATIVE, filled('{"messages":[', "1", "]}")),
    "escapes": (NATIVE, filled('{"prompt":[', '"\\u0041"', "]}")),
    "too many numbers": (NATIVE, filled('{"prompt":[', "0", "]}", beyond=True)),
    "too many strings": (NATIVE, filled('{"prompt":[', '""', "]}", beyond=True)),
    "too many lists": (NATIVE, filled('{"prompt":[', "[]", "]}", beyond=True)),
    "too many names": (NATIVE, named("{", "}", 300_000)),
    "an endless string": (NATIVE, b'{"prompt":"' + b'\\"' * (MAX_BYTES // 2 - 64)),
    "nested": (NATIVE, b'{"prompt":' + b"[" * (MAX_BYTES - 64)),
    "digits": (NATIVE, b'{"max_tokens":' + b"1" * (MAX_BYTES - 64) + b"}"),
    "fraction": (NATIVE, b'{"top_p":1.' + b"1" * (MAX_BYTES - 64) + b"}"),
}


@pytest.fixture(scope="module", params=["lax", "strict"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    strict = ["--strict"] if request.param == "strict" else []
    with serve(*strict, **STEADY) as server:
        yield server


def test_no_body_stops_a_stream_or_takes_much_memory(server: RunningServer) -> None:
    with honest_client(server, longest_pause=LONGEST_PAUSE_S):
        ask(server.port, post(filled('{"prompt":[', "[1]", "]}"), path=COMPLETION))  # warm
        before = peak_bytes(server)
        for name, (path, body) in HOSTILE.items():
            answer = ask(server.port, post(body, path=path))
            assert answer.status in (200, 400, 422), name
        assert peak_bytes(server) - before < MOST_GROWTH


def test_a_list_stops_at_its_first_error_wherever_it_is() -> None:
    for model in (ChatRequest, CompletionRequest, GenerateRequest, ResponseRequest):
        kinds = list(lists_in(model.__pydantic_core_schema__))
        assert kinds
        assert all(kind.get("fail_fast") for kind in kinds), model


def lists_in(schema: object) -> Iterator[dict[str, Any]]:
    """Yield the schemas of lists in a schema of pydantic's core.

    A list of any JSON values has no errors, and some parts only describe.
    """
    if isinstance(schema, dict):
        if str(schema.get("ref")).startswith("pydantic.types.JsonValue"):
            return
        if schema.get("type") == "list":
            yield schema
        for name, part in schema.items():
            if name not in ("json_schema_input_schema", "metadata", "serialization"):
                yield from lists_in(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from lists_in(part)


# Bodies under way.


@contextlib.contextmanager
def unfinished(
    server: RunningServer, num: int, *headers: str, size: int
) -> Iterator[list[Connection]]:
    """Yield connections that have sent all but the last byte of a body with `size` bytes."""
    body = b'{"prompt":"' + b"a" * (size - 13) + b'"}'
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Connection(server.port)) for _ in range(num)]
        for connection in opened:
            sent = post(body, "X-Sent-As: bytes", *headers)
            with contextlib.suppress(ConnectionError):  # it may be refused before it is sent
                connection.send(sent[:-1])
        yield opened


@pytest.fixture(scope="module", params=["ours", "granian"])
def with_keys(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with three keys, one of which may have eight streams."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    lines = []
    for name, key in KEYS.items():
        hashed = hashlib.sha256(key.encode()).hexdigest()
        lines.append(f'[keys.{name}]\nhash = "sha256:{hashed}"\n')
    lines.append("max_streams = 8\n")
    path.write_text("".join(lines))
    flags = ["--http2"] if request.param == "granian" else []
    with serve(*flags, keys=path, **STEADY) as server:
        yield server


KEYS = {"flood": "psk_" + "f" * 43, "calm": "psk_" + "c" * 43, "bounded": "psk_" + "b" * 43}


def as_key(name: str) -> str:
    return f"Authorization: Bearer {KEYS[name]}"


def test_bodies_under_way_have_a_bound_and_leave_room_for_other_keys(
    with_keys: RunningServer,
) -> None:
    server = with_keys
    before = peak_bytes(server)
    with (
        honest_client(server, as_key("calm")),
        unfinished(server, 120, as_key("flood"), size=MAX_BYTES) as flood,
    ):
        assert eventually(lambda: sum(map(is_readable, flood)) >= 120 - 16)
        refused = [each.response() for each in flood if is_readable(each)]
        assert {each.status for each in refused} == {429}
        assert {each.json()["code"] for each in refused} == {"bodies_full"}
        assert all("retry-after" in each.headers for each in refused)
        # A small request of the flood, and large ones of another key, are still read.
        large = json.dumps({"prompt": "a" * (MAX_BYTES - 100), "max_tokens": 1, "stream": False})
        for _ in range(3):
            answer = ask(server.port, post(large.encode(), as_key("calm")))
            assert answer.status == 200, answer.body
        assert peak_bytes(server) - before < MOST_GROWTH
        assert flood[0].send(b"}").head().status == 200  # an admitted body is read to its end


def test_a_key_has_no_more_bodies_under_way_than_streams(with_keys: RunningServer) -> None:
    with (
        honest_client(with_keys, as_key("calm")),
        unfinished(with_keys, 12, as_key("bounded"), size=100_000) as sent,
    ):
        assert eventually(lambda: sum(map(is_readable, sent)) == 4)
        for connection in filter(is_readable, sent):
            answer = connection.response()
            assert (answer.status, answer.json()["code"]) == (429, "too_many_streams")


def test_bodies_without_a_length_and_compressed_ones_are_bounded_too(
    with_keys: RunningServer,
) -> None:
    server = with_keys
    before = peak_bytes(server)
    head = request(
        "POST",
        "/generate",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
        as_key("flood"),
    )
    piece = b"%x\r\n%b\r\n" % (2**21, b" " * 2**21)
    with honest_client(server, as_key("calm")), contextlib.ExitStack() as stack:
        flood = [stack.enter_context(Connection(server.port)) for _ in range(60)]
        for connection in flood:
            with contextlib.suppress(ConnectionError):
                connection.send(head + piece)
        assert eventually(lambda: sum(map(is_readable, flood)) >= 60 - 32)
        bomb = gzip.compress(
            b'{"prompt":"a","max_tokens":1,"stream":false}' + b" " * (MAX_BYTES - 64)
        )
        for _ in range(20):
            answer = ask(server.port, post(bomb, as_key("calm"), "Content-Encoding: gzip"))
            assert answer.status == 200
        assert peak_bytes(server) - before < MOST_GROWTH


def is_readable(connection: Connection) -> bool:
    return bool(select.select([connection.socket], [], [], 0)[0])


def peak_bytes(server: RunningServer) -> int:
    """Return the most memory that the server's process has had."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index] # Linux has it
