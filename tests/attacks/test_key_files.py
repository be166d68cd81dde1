"""The life of keys: rotated, revoked, expired, and files of keys that are broken."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from penstock.web.keys import hash_of
from tests.attacks.honest import STEADY, honest_client
from tests.support.keyed import Keys, reload_keys
from tests.support.raw import Connection, ask, open_stream, request
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve
from tests.support.waiting import eventually

NAMES = ("honest", "rotated", "revoked", "uploading", "expiring", "used", "broken", "admin")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys.toml", *NAMES)


@pytest.fixture(scope="module")
def server(keys: Keys) -> Iterator[RunningServer]:
    with serve("--log-format=json", keys=keys.path, **STEADY) as server:
        yield server


@pytest.fixture(autouse=True)
def beside_an_honest_stream(server: RunningServer, keys: Keys) -> Iterator[None]:
    with honest_client(server, keys.header("honest")):
        yield


def status_for(server: RunningServer, key: str) -> int:
    sent = request("GET", "/v1/models", f"Authorization: Bearer {key}")
    return ask(server.port, sent).status


def key_command(keys: Keys, *arguments: str) -> str:
    """Run `penstock key` on the file of keys; return its standard output."""
    command = [sys.executable, "-m", "penstock", "key", *arguments, "--file", str(keys.path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_key_is_rotated_without_one_refusal(server: RunningServer, keys: Keys) -> None:
    old = keys.keys["rotated"]
    current, statuses, is_done = [old], [], threading.Event()

    def client() -> None:
        while not is_done.is_set():
            statuses.append(status_for(server, current[0]))

    thread = threading.Thread(target=client)
    thread.start()
    try:
        new = key_command(keys, "rotate", "rotated")
        reload_keys(server)
        assert status_for(server, old) == status_for(server, new) == 200
        current[0] = new
        answered = len(statuses)
        assert eventually(lambda: len(statuses) > answered + 2)
        key_command(keys, "revoke", "rotated", "--old")
        reload_keys(server)
        assert status_for(server, old) == 401
        answered = len(statuses)
        assert eventually(lambda: len(statuses) > answered)
    finally:
        is_done.set()
        thread.join()
    assert set(statuses) == {200}
    keys.keys["rotated"] = new
    keys.write()


def test_revoking_a_key_ends_its_streams_and_no_others(server: RunningServer, keys: Keys) -> None:
    streamed, _ = open_stream(server.port, keys.generate("revoked", max_tokens=10**6))
    with streamed, Connection(server.port) as whole:
        whole.send(keys.generate("revoked", max_tokens=10**6, stream=False))
        events = streamed.events()
        assert next(events)["index"] == 0
        key_command(keys, "revoke", "revoked")
        reload_keys(server)
        *_, end = events
        assert end["finish_reason"] == "error"
        assert end["error"]["code"] == "revoked_api_key"
        assert end["error"]["retry_safe"] is False
        answer = whole.response()
        assert (answer.status, answer.json()["code"]) == (401, "revoked_api_key")
    assert status_for(server, keys.keys["revoked"]) == 401


def test_one_of_two_keys_is_revoked_with_its_own_streams_only(
    server: RunningServer, keys: Keys
) -> None:
    with honest_client(server, keys.header("rotated")):
        new = key_command(keys, "rotate", "rotated")
        reload_keys(server)
        hashes = [hash_of(keys.keys["rotated"]), hash_of(new)]
        old, _ = open_stream(server.port, with_key(keys, new))
        keys.path.write_text(keys.path.read_text().replace(f'"{hashes[1]}", ', ""))
        reload_keys(server)
        with old:
            *_, end = old.events()
        assert end["error"]["code"] == "revoked_api_key"
    keys.write()


def with_key(keys: Keys, key: str) -> bytes:
    sent = keys.generate("rotated", max_tokens=10**6)
    return sent.replace(keys.keys["rotated"].encode(), key.encode())


def test_a_request_whose_key_is_revoked_while_it_uploads_does_not_start(
    server: RunningServer, keys: Keys
) -> None:
    sent = keys.generate("uploading", max_tokens=10**6)
    with Connection(server.port) as connection:
        connection.send(sent[:-5])
        assert status_for(server, keys.keys["uploading"]) == 200  # sent after the head above
        key_command(keys, "revoke", "uploading")
        reload_keys(server)
        connection.send(sent[-5:])
        assert connection.response().status == 401


def test_a_key_expires_and_its_streams_end(server: RunningServer, keys: Keys) -> None:
    until = datetime.now(UTC) + timedelta(seconds=6)
    keys.fields["expiring"] = {"expires": until.isoformat()}
    keys.write()
    reload_keys(server)
    connection, _ = open_stream(server.port, keys.generate("expiring", max_tokens=10**6))
    with connection:
        *_, end = connection.events()
    assert datetime.now(UTC) >= until
    assert end["error"]["code"] == "expired_api_key"
    answer = ask(server.port, request("GET", "/streams/x", keys.header("expiring")))
    assert (answer.status, answer.json()["code"]) == (401, "expired_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-should-retry"] == "false"


HASH = "sha256:" + "0" * 64
BROKEN = {
    "empty": (b"", "empty"),
    "only comments": (b"# nobody\n\n", "empty"),
    "half a header": (b"# keys\n[keys.al", "line 2"),
    "half a hash": (b'[keys.a]\nhash = "sha256:0000', "line 2"),
    "a short hash": (b'[keys.a]\n\nhash = "sha256:0000"\n', "line 3"),
    "no hash": (f'[keys.b]\nhash = "{HASH}"\n\n[keys.a]\nadmin = true'.encode(), "line 4"),
    "an unknown field": (f'[keys.a]\nhash = "{HASH}"\nmax_stream = 1'.encode(), "line 3"),
    "a wrong limit": (f'[keys.a]\nhash = "{HASH}"\nmax_streams = -1'.encode(), "line 3"),
    "no time zone": (f'[keys.a]\nhash = "{HASH}"\nexpires = 2027-01-01'.encode(), "line 3"),
    "the same key twice": (
        f'[keys.a]\nhash = "{HASH}"\n[keys.b]\nhash = ["{HASH}"]'.encode(),
        "line 3",
    ),
    "another table": (b"[keys.a]\n[server]\nport = 1", "line 2"),
    "Latin-1": (b"# caf\xe9\n[keys.a]", "line 1"),
    "zeros": (b"\x00" * 100, "line 1"),
}


@pytest.mark.parametrize(("content", "place"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_changes_nothing_and_the_log_names_the_line(
    server: RunningServer, keys: Keys, content: bytes, place: str
) -> None:
    keys.path.write_bytes(content)
    said = json.loads(reload_keys(server, "keeping the old keys"))
    keys.write()
    assert said["level"] == "error"
    assert place in said["message"]
    assert "0000" not in json.dumps(said)
    assert status_for(server, keys.keys["broken"]) == 200


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_an_unreadable_file_changes_nothing(server: RunningServer, keys: Keys, kind: str) -> None:
    keys.path.unlink()
    if kind == "folder":
        keys.path.mkdir()
    reload_keys(server, "keeping the old keys: The file of keys cannot be read")
    if kind == "folder":
        keys.path.rmdir()
    keys.write()
    assert status_for(server, keys.keys["broken"]) == 200


def test_the_usage_of_each_key_is_in_the_metrics_and_in_the_log(
    server: RunningServer, keys: Keys
) -> None:
    sent = keys.generate("used", "one two", max_tokens=3, stream=False)
    assert ask(server.port, sent).status == 200
    assert ask(server.port, keys.generate("used", temperature=-1)).status == 422
    scrape = Scrape(server, keys.header("admin"))
    assert scrape("penstock_key_requests_total", key="used") == 2
    assert scrape("penstock_key_refusals_total", key="used") == 1
    assert scrape("penstock_key_prompt_tokens_total", key="used") == 2
    assert scrape("penstock_key_completion_tokens_total", key="used") == 3
    assert set(scrape.by("penstock_key_requests_total", "key")) <= {*NAMES}
    # A stream that runs counts as well.
    assert scrape("penstock_key_completion_tokens_total", key="honest") > 0

    def lines() -> list[dict[str, object]]:
        found = [json.loads(line) for line in server.output if '"owner": "key used"' in line]
        return [line for line in found if line["status"] == 200]

    assert eventually(lambda: bool(lines()))
    (line,) = lines()
    assert (line["prompt_tokens"], line["completion_tokens"]) == (2, 3)
    key_id = hash_of(keys.keys["used"]).removeprefix("sha256:")[:12]
    assert line["key"] == key_id
    assert key_id in key_command(keys, "list")
