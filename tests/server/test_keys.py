"""A server with keys, over a socket: access, ownership of streams, and what answers reveal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from penstock import Client
from penstock.client.errors import RefusedError
from penstock.web.keys import key_table, new_key
from tests.support.raw import Connection, ask, cancel_stream, generate, open_stream, post, request
from tests.support.servers import RunningServer, refuses_to_start, serve
from tests.support.waiting import eventually

ALICE, BOB, ADMIN, CARLA = (new_key() for _ in range(4))


def auth(key: str) -> str:
    return f"Authorization: Bearer {key}"


def generate_as(key: str, **fields: object) -> bytes:
    head, _, body = generate(**fields).partition(b"\r\n\r\n")  # type: ignore[arg-type] # the fields are generate's own
    return head + f"\r\n{auth(key)}\r\n\r\n".encode() + body


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    tables = [
        key_table("alice", ALICE, is_admin=False) + "\nmax_streams = 2",
        key_table("bob", BOB, is_admin=False),
        key_table("root", ADMIN, is_admin=True),
    ]
    path.write_text("\n".join(tables))
    return path


@pytest.fixture(scope="module")
def server(keys_file: Path) -> Iterator[RunningServer]:
    with serve(
        engine="mock", mock_interval=0, keys=keys_file, engine_arg=["hang_at=3", "length=10"]
    ) as server:
        yield server
        everything = "".join(server.output)
        for key in (ALICE, BOB, ADMIN, CARLA, "psk_wrong"):
            assert key not in everything


WITHOUT_A_KEY = {
    "no header": [],
    "no scheme": [f"Authorization: {ALICE}"],
    "Bearer alone": ["Authorization: Bearer"],
    "Bearer and a space": ["Authorization: Bearer "],
    "another scheme": [f"Authorization: Basic {ALICE}"],
    "a wrong key": [auth("psk_wrong")],
    "half a key": [auth(ALICE[:-1])],
    "a key and more": [auth(ALICE + "x")],
    "two keys": [auth(f"{ALICE} {BOB}")],
    "a space within": [auth(ALICE.replace("psk_", "psk_ "))],
    "quotes": [auth("' OR '1'='1")],
    "a key of 8 KB": [auth("k" * 8000)],
    "a key in a cookie": [f"Cookie: api_key={ALICE}; Authorization=Bearer {ALICE}"],
    "a key in another header": [f"X-Key: {ALICE}"],
    "a wrong X-API-Key": ["X-API-Key: psk_wrong"],
    "an X-API-Key of 8 KB": ["X-API-Key: " + "k" * 8000],
}


@pytest.mark.parametrize("headers", WITHOUT_A_KEY.values(), ids=WITHOUT_A_KEY)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/generate"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/streams/x"),
        ("DELETE", "/streams/x"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/nothing"),
        ("GET", "//"),
        ("GET", "/health/../metrics"),
        ("GET", "/page/../metrics"),
    ],
)
def test_requests_without_a_key_are_refused(
    server: RunningServer, method: str, path: str, headers: list[str]
) -> None:
    answer = ask(server.port, request(method, path, "Content-Length: 0", *headers))
    if path == "/page/../metrics":  # not resolved: the page has no such file
        assert answer.status == 404
        return
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    problem = answer.json()
    code = problem["error"]["code"] if path.startswith("/v1") else problem["code"]
    assert code == "invalid_api_key"


def test_two_authorization_headers_are_a_bad_request(server: RunningServer) -> None:
    answer = ask(server.port, request("GET", "/v1/models", auth(ALICE), auth(ALICE)))
    assert answer.status == 400


def test_a_key_may_come_in_x_api_key(server: RunningServer) -> None:
    """Anthropic's clients send it there, and some send both headers."""
    alone = f"X-API-Key: {ALICE}"
    for headers in ([alone], [alone, auth(ALICE)], [alone, "Authorization: Basic eDp5"]):
        assert ask(server.port, request("GET", "/v1/models", *headers)).status == 200


def test_two_different_keys_are_a_bad_request(server: RunningServer) -> None:
    for headers in ([auth(BOB)], [f"X-API-Key: {BOB}"]):
        sent = request("GET", "/v1/models", f"X-API-Key: {ALICE}", *headers)
        answer = ask(server.port, sent)
        assert answer.status == 400
        assert answer.json()["error"]["code"] == "bad_authorization"


def test_a_key_in_the_url_opens_nothing(server: RunningServer) -> None:
    for query in (f"api_key={ALICE}", f"key={ALICE}", f"access_token={ALICE}"):
        assert ask(server.port, request("GET", f"/v1/models?{query}")).status == 401


def test_a_key_is_refused_before_100_continue(server: RunningServer) -> None:
    sent = request("POST", "/generate", "Content-Length: 9", "Expect: 100-continue", auth("x" * 20))
    assert ask(server.port, sent).status == 401


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready", "/page/chat.js"])
def test_the_page_and_the_health_checks_need_no_key(server: RunningServer, path: str) -> None:
    assert ask(server.port, request("GET", path)).status == 200


def test_a_key_opens_both_apis_and_only_an_admin_s_the_metrics(server: RunningServer) -> None:
    sent = generate_as(BOB, stream=False, max_tokens=2)
    assert ask(server.port, sent).json()["finish_reason"] == "length"
    sent = post(b'{"prompt":"a","max_tokens":2}', auth(BOB), path="/v1/completions")
    assert ask(server.port, sent).status == 200
    assert ask(server.port, request("GET", "/metrics", auth(BOB))).status == 403
    assert ask(server.port, request("GET", "/metrics", auth(ADMIN))).status == 200


def test_the_log_has_the_key_s_name_and_not_the_key(server: RunningServer) -> None:
    sent = request("GET", "/v1/models", auth(BOB), "X-Request-ID: whose-is-this")
    assert ask(server.port, sent).status == 200

    def lines() -> list[str]:
        return [line for line in server.output if "whose-is-this" in line]

    assert eventually(lambda: bool(lines()))
    assert 'owner="key bob"' in lines()[0]


def test_the_python_client_sends_its_key(server: RunningServer) -> None:
    with Client(server.url, api_key=BOB) as client:
        assert client.generate("x", max_tokens=2).text
    with Client(server.url, api_key="psk_wrong") as client, pytest.raises(RefusedError) as refused:
        client.generate("x")
    assert refused.value.status == 401


def test_another_s_stream_is_as_unknown_as_one_that_never_was(server: RunningServer) -> None:
    connection, stream_id = open_stream(server.port, generate_as(ALICE, resumable=True))
    with connection:
        assert next(connection.events())["index"] == 0
        for method in ("GET", "DELETE"):
            answers = [
                ask(server.port, request(method, f"/streams/{each}", auth(BOB)))
                for each in (stream_id, "A" * 22)
            ]
            assert [answer.status for answer in answers] == [404, 404]
            assert answers[0].body == answers[1].body
            names = [
                set(answer.headers) - {"date", "x-request-id", "server-timing"}
                for answer in answers
            ]
            assert names[0] == names[1]
        with Connection(server.port) as again:
            again.send(request("GET", f"/streams/{stream_id}", auth(ALICE)))
            assert again.head().status == 200
        assert cancel_stream(server.port, stream_id, auth(ADMIN)) == "cancelled"


def test_a_key_s_streams_are_limited(server: RunningServer) -> None:
    opened = [open_stream(server.port, generate_as(ALICE)) for _ in range(2)]
    try:
        answer = ask(server.port, generate_as(ALICE))
        assert (answer.status, answer.json()["code"]) == (429, "too_many_streams")
        assert ask(server.port, generate_as(BOB, max_tokens=1)).status == 200
    finally:
        for connection, stream_id in opened:
            cancel_stream(server.port, stream_id, auth(ALICE))
            connection.close()


def test_keys_are_read_again_on_sighup_while_streams_go_on(
    server: RunningServer, keys_file: Path
) -> None:
    def status_for(key: str) -> int:
        return ask(server.port, request("GET", "/v1/models", auth(key))).status

    before = keys_file.read_text()
    connection, stream_id = open_stream(server.port, generate_as(BOB))
    with connection:
        keys_file.write_text(before + "\n" + key_table("carla", CARLA, is_admin=False))
        assert status_for(CARLA) == 401
        server.signal(signal.SIGHUP)
        assert eventually(lambda: status_for(CARLA) == 200)
        keys_file.write_text("[broken")
        server.signal(signal.SIGHUP)
        assert server.has_said("keeping the old keys")
        assert status_for(CARLA) == 200
        keys_file.write_text(before)
        server.signal(signal.SIGHUP)
        assert eventually(lambda: status_for(CARLA) == 401)
        assert next(connection.events())["index"] == 0
        assert cancel_stream(server.port, stream_id, auth(BOB)) == "cancelled"


def test_preflight_needs_no_key_and_a_refusal_can_be_read_by_an_admitted_page() -> None:
    with serve(
        "--cors-origin=https://example.org", engine="mock", api_key=BOB, mock_interval=0
    ) as server:
        url = f"{server.url}/generate"
        headers = {"Origin": "https://example.org"}
        preflight = requests.options(
            url,
            headers={
                **headers,
                "Access-Control-Request-Method": "POST",
                # The headers of OpenAI's own client in a browser.
                "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
            },
            timeout=30,
        )
        assert preflight.status_code == 200
        assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
        foreign = requests.options(
            url,
            headers={"Origin": "https://other.org", "Access-Control-Request-Method": "POST"},
            timeout=30,
        )
        assert foreign.status_code == 400
        assert "--cors-origin" in foreign.text
        refused = requests.post(url, json={"prompt": "x"}, headers=headers, timeout=30)
        assert refused.status_code == 401
        assert "X-Penstock-Ignored" in refused.headers["access-control-expose-headers"]
        assert refused.headers["access-control-allow-origin"] == "https://example.org"


def test_without_a_key_nothing_is_served_beyond_this_machine() -> None:
    assert "--insecure" in refuses_to_start(engine="mock", host="0.0.0.0")
    for arguments in (["--insecure"], [f"--api-key={BOB}"]):
        with serve(*arguments, engine="mock", host="0.0.0.0") as server:
            assert ask(server.port, request("GET", "/health")).status == 200


def test_keys_may_come_from_the_environment_and_key_makes_them(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "penstock", "key", "dora", "--admin"],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")},
    )
    (key,) = [word for word in made.stderr.split() if word.startswith("psk_")]
    assert key not in made.stdout
    path = tmp_path / "keys.toml"
    path.write_text(made.stdout)
    with serve(engine="mock", keys=path) as server:
        assert ask(server.port, request("GET", "/metrics", auth(key))).status == 200


@pytest.mark.parametrize("own", [False, True], ids=["a running server", "an engine of its own"])
def test_the_terminal_takes_its_key_from_the_environment(server: RunningServer, own: bool) -> None:
    command = [sys.executable, "-m", "penstock", "generate", "Hello", "--max-tokens", "2"]
    command += ["--engine", "mock"] if own else ["--url", server.url]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PENSTOCK_API_KEY": BOB}
    )
    assert done.returncode == 0, done.stderr
    assert "Water comes" in done.stdout
