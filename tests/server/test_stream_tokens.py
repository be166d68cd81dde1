"""Tokens of streams, over sockets: what a token opens, what it does not, and when it ends."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.keyed import Keys, reload_keys
from tests.support.raw import Connection, Response, ask, generate, open_stream, request
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

LENGTH = 40
UNKNOWN = "A" * 22
STEADY = {"engine": "mock", "mock_interval": 0.01, "engine_arg": ["numbered=true", "length=5000"]}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.toml", "alice", "bob", "admin")


@pytest.fixture(scope="module")
def server(keys: Keys) -> Iterator[RunningServer]:
    """Serve with keys. At the end, no token that this module has made stands in the log."""
    with serve("--log-prompts", **STEADY, keys=keys.path) as server:
        # Whichever of the tests run here, there is one token at least.
        url_of(server, begin(server, keys), keys.header("alice"))
        yield server
    log = "".join(server.output)
    assert TOKENS
    assert "/streams/{stream_id}/token" in log
    for token in TOKENS:
        assert token not in log
        assert token.partition(".")[2] not in log


TOKENS: list[str] = []


def begin(server: RunningServer, keys: Keys, name: str = "alice", max_tokens: int = LENGTH) -> str:
    """Open a resumable stream of `name` and leave it; return its id."""
    sent = keys.generate(name, max_tokens=max_tokens, resumable=True)
    connection, stream_id = open_stream(server.port, sent)
    connection.close()
    return stream_id


def made(server: RunningServer, stream_id: str, *headers: str) -> Response:
    """Ask for a token."""
    return ask(server.port, request("POST", f"/streams/{stream_id}/token", *headers))


def url_of(server: RunningServer, stream_id: str, *headers: str) -> str:
    """Return a stream's path with a new token."""
    answer = made(server, stream_id, *headers)
    assert answer.status == 200, answer.body
    token = answer.json()["token"]
    TOKENS.append(token)
    assert answer.json() == {"token": token, "url": f"/streams/{stream_id}?token={token}"}
    assert answer.headers["cache-control"] == "no-store"
    return str(answer.json()["url"])


def read(server: RunningServer, url: str, *headers: str) -> Response:
    return ask(server.port, request("GET", url, *headers))


def events_in(answer: Response) -> bytes:
    """Return the events without the time after which a client comes back, which is random."""
    assert answer.status == 200, answer.body
    return answer.body.partition(b"\n")[2]


def code_of(answer: Response) -> tuple[int, str]:
    return answer.status, answer.json()["code"]


# --- what a token opens


def test_a_token_reads_what_its_key_reads_from_every_place(
    server: RunningServer, keys: Keys
) -> None:
    stream_id = begin(server, keys)
    url = url_of(server, stream_id, keys.header("alice"))
    whole = events_in(read(server, url))  # it runs when this begins
    assert events_in(read(server, f"/streams/{stream_id}", keys.header("alice"))) == whole
    assert whole.count(b"\n\n") == LENGTH + 1
    rest = whole.split(b"\n\n", 8)[8]
    token = url.partition("?")[2]
    assert events_in(read(server, f"{url}&after=7")) == rest
    assert events_in(read(server, f"/streams/{stream_id}?after={stream_id}.7&{token}")) == rest
    assert events_in(read(server, f"{url}&after=3", "Last-Event-ID: 7")) == rest
    assert read(server, f"{url}&after={LENGTH}").status == 204
    assert code_of(read(server, f"{url}&after={LENGTH + 1}")) == (400, "bad_event_id")
    assert events_in(read(server, url, "Authorization: Basic eDp5")) == whole  # a proxy's


def test_an_admin_s_key_makes_tokens_of_all_streams_and_another_s_key_of_none(
    server: RunningServer, keys: Keys
) -> None:
    stream_id = begin(server, keys)
    assert events_in(read(server, url_of(server, stream_id, keys.header("admin"))))
    foreign, unknown = [made(server, each, keys.header("bob")) for each in (stream_id, UNKNOWN)]
    assert code_of(foreign) == (404, "stream_not_found")
    assert foreign.body == unknown.body
    assert code_of(made(server, stream_id)) == (401, "invalid_api_key")


def test_a_stream_that_is_not_resumable_has_no_token(server: RunningServer, keys: Keys) -> None:
    connection, stream_id = open_stream(server.port, keys.generate("alice", max_tokens=LENGTH))
    with connection:
        answer = made(server, stream_id, keys.header("alice"))
        assert code_of(answer) == (409, "not_resumable")


def test_the_log_names_the_key_of_a_token_and_the_metrics_do_not_have_it(
    server: RunningServer, keys: Keys
) -> None:
    url = url_of(server, begin(server, keys), keys.header("alice"))
    read(server, url, "X-Request-ID: read-by-token")

    def lines() -> list[str]:
        return [line for line in server.output if "read-by-token" in line]

    assert eventually(lambda: bool(lines()))
    assert 'owner="key alice"' in lines()[-1]
    metrics = ask(server.port, request("GET", "/metrics", keys.header("admin"))).body.decode()
    assert "penstock_http_requests_total" in metrics
    assert TOKENS[-1].partition(".")[2] not in metrics


def test_without_keys_tokens_are_made_and_not_needed() -> None:
    with serve(**STEADY) as server:
        connection, stream_id = open_stream(
            server.port, generate(max_tokens=LENGTH, resumable=True)
        )
        connection.close()
        url = url_of(server, stream_id)
        whole = events_in(read(server, url))
        for path in (f"/streams/{stream_id}", f"/streams/{stream_id}?token=x"):
            assert events_in(read(server, path)) == whole
        assert code_of(made(server, UNKNOWN)) == (404, "stream_not_found")


# --- what it does not open


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/streams/{id}"),
        ("HEAD", "/streams/{id}"),
        ("POST", "/streams/{id}"),
        ("POST", "/streams/{id}/token"),
        ("GET", "/streams/{id}/token"),
        ("GET", "/streams/{id}/"),
        ("GET", "//streams/{id}"),
        ("GET", "/streams/../metrics"),
        ("GET", "/streams/{id}/../../metrics"),
        ("GET", "/streams/%2e%2e%2fmetrics"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("GET", "/v1/responses/resp_{id}"),
        ("POST", "/generate"),
    ],
)
def test_a_token_opens_nothing_but_its_stream_for_reading(
    server: RunningServer, keys: Keys, method: str, path: str
) -> None:
    stream_id = begin(server, keys, max_tokens=3)
    token = url_of(server, stream_id, keys.header("admin")).partition("?")[2]
    sent = request(method, f"{path.replace('{id}', stream_id)}?{token}", "Content-Length: 0")
    with Connection(server.port) as connection:
        assert connection.send(sent).head().status == 401
    assert read(server, f"/streams/{stream_id}?{token}").status == 200  # it was good


def test_a_token_is_of_one_stream_and_one_key(server: RunningServer, keys: Keys) -> None:
    first, second = begin(server, keys), begin(server, keys)
    key_id, proof = url_of(server, first, keys.header("alice")).partition("=")[2].split(".")
    other_id = url_of(server, first, keys.header("admin")).partition("=")[2].split(".")[0]
    assert key_id != other_id
    wrong = [
        f"/streams/{second}?token={key_id}.{proof}",
        f"/streams/{UNKNOWN}?token={key_id}.{proof}",
        *(
            f"/streams/{first}?token={each}"
            for each in (
                f"{other_id}.{proof}",
                f"{'0' * 12}.{proof}",
                f"{key_id}.{'A' * 43}",
                f"{key_id}.{proof[:-4]}AAAA",
                f"{key_id}.{proof[:-1]}",
                f"{key_id}.{proof}A",
                f"{key_id}.",
                f".{proof}",
                f"{key_id}%2e{proof}",
                f"{key_id}.{proof}&token={key_id}.{proof}",
                "",
                "x" * 4000,
                "%00%ff",
            )
        ),
    ]
    answers = [read(server, path) for path in wrong]
    assert [code_of(each) for each in answers] == [(401, "invalid_stream_token")] * len(wrong)
    assert len({each.body for each in answers}) == 1
    assert proof.encode() not in answers[0].body
    assert read(server, f"/streams/{first}?token={key_id}.{proof}").status == 200


def test_a_key_counts_more_than_a_token(server: RunningServer, keys: Keys) -> None:
    url = url_of(server, begin(server, keys), keys.header("alice"))
    assert code_of(read(server, url, keys.header("bob"))) == (404, "stream_not_found")
    assert code_of(read(server, url, "Authorization: Bearer psk_wrong"))[0] == 401


# --- when it ends


def test_a_token_ends_with_its_stream(keys: Keys) -> None:
    with serve(**STEADY, keys=keys.path, retain=0.1) as server:
        # The stream must be there when its token is made: it lasts for three seconds.
        url = url_of(server, begin(server, keys, max_tokens=300), keys.header("alice"))
        assert eventually(lambda: read(server, url).status == 401)


def test_a_revoked_key_ends_its_tokens_and_cuts_their_readers(tmp_path: Path) -> None:
    """The admin's token reads a stream that goes on without it; the other one is bob's own."""
    keys = Keys(tmp_path / "keys.toml", "alice", "bob", "carla", "admin")
    with serve(**STEADY, keys=keys.path) as server:
        of_alice, of_bob = (begin(server, keys, name, 5000) for name in ("alice", "bob"))
        own = url_of(server, of_bob, keys.header("bob"))
        lent = url_of(server, of_alice, keys.header("admin"))
        kept = url_of(server, of_alice, keys.header("alice"))
        with (
            Connection(server.port) as bobs,
            Connection(server.port) as admins,
            Connection(server.port) as alices,
        ):
            for connection, url in ((bobs, own), (admins, lent), (alices, kept)):
                assert connection.send(request("GET", url)).head().status == 200
            reading = alices.events()
            assert next(reading)["index"] == 0
            del keys.keys["bob"], keys.keys["admin"]
            keys.write()
            reload_keys(server)
            for connection in (bobs, admins):
                with pytest.raises((EOFError, ConnectionError)):  # cut, not ended
                    connection.rest()
            for url in (own, lent):
                assert code_of(read(server, url)) == (401, "invalid_stream_token")
            assert [next(reading)["index"] for _ in range(3)] == [1, 2, 3]


def test_a_key_that_expires_ends_its_tokens_and_cuts_their_readers(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice", "admin")
    with serve(**STEADY, keys=keys.path) as server, Connection(server.port) as connection:
        url = url_of(server, begin(server, keys, "alice", 5000), keys.header("admin"))
        assert connection.send(request("GET", url)).head().status == 200
        soon = datetime.now(UTC) + timedelta(seconds=1)
        keys.fields["admin"] = {"expires": f"{soon:%Y-%m-%dT%H:%M:%SZ}"}
        keys.write()
        reload_keys(server)
        with pytest.raises((EOFError, ConnectionError)):
            connection.rest()
        assert code_of(read(server, url)) == (401, "invalid_stream_token")


def test_a_token_does_no_more_than_its_key_may_now(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice", "admin")
    with serve(**STEADY, keys=keys.path) as server:
        url = url_of(server, begin(server, keys), keys.header("admin"))
        assert read(server, url).status == 200
        keys.path.write_text(keys.path.read_text().replace("admin = true", "admin = false"))
        reload_keys(server)
        assert code_of(read(server, url)) == (401, "invalid_stream_token")


# --- at every replica


def test_a_token_is_good_at_every_server_over_a_folder_and_after_one_is_killed(
    tmp_path: Path,
) -> None:
    keys = Keys(tmp_path / "keys.toml", "alice", "bob")
    flags = {**STEADY, "keys": keys.path, "log": tmp_path / "log"}
    with serve(**flags) as second:
        with serve(**flags) as first:
            stream_id = begin(first, keys, max_tokens=150)
            here = url_of(first, stream_id, keys.header("alice"))
            there = url_of(second, stream_id, keys.header("alice"))
            assert here == there
            with Connection(second.port) as connection:
                assert connection.send(request("GET", there)).head().status == 200
                reading = connection.events()
                assert next(reading)["index"] == 0
                first.process.kill()
                first.process.wait()
                assert [event["index"] for event in reading] == list(range(1, 151))
        whole = events_in(read(second, here))
        with serve(**flags) as third:
            assert events_in(read(third, here)) == whole
            assert code_of(read(third, here[:-4] + "AAAA")) == (401, "invalid_stream_token")
        del keys.keys["alice"]
        keys.write()
        reload_keys(second)
        assert code_of(read(second, here)) == (401, "invalid_stream_token")


# --- where the URL goes


def test_every_response_tells_browsers_to_pass_no_url_on(server: RunningServer, keys: Keys) -> None:
    url = url_of(server, begin(server, keys, max_tokens=3), keys.header("alice"))
    answers = [
        *(read(server, path) for path in (url, "/", "/page/chat.js", "/health", "/docs", "/nope")),
        read(server, "/", "Accept: text/html"),
        read(server, f"{url}&after=3"),
        read(server, "/health", "Host: evil\\example"),
        read(server, "/health", "Origin: http://example.org"),
        ask(server.port, keys.generate("alice", max_tokens=1)),
        ask(server.port, request("OPTIONS", "/generate", "Origin: http://example.org")),
    ]
    assert {answer.status for answer in answers} >= {200, 204, 400, 401}
    for answer in answers:
        assert answer.headers["referrer-policy"] == "no-referrer", answer
