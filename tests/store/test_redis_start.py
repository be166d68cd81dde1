"""What keeps a server from starting with Redis is an error that says why, and what to do."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from redis.asyncio import Redis

from penstock.errors import StartError
from penstock.store.protocol import StoreError
from penstock.store.redis import RedisStore
from penstock.store.redis.address import parse_address
from penstock.store.redis.layout import FORMAT_KEY, PREFIX
from tests.store.servers import RedisServer
from tests.store.stores import Replica
from tests.support.ports import free_port
from tests.support.tcp_server import tcp_server

DOCS = Path(__file__).parents[2] / "docs" / "stores.md"
SECRET = "a-secret-of-the-store"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[RedisServer]]:
    started: list[RedisServer] = []
    yield started
    for server in started:
        server.kill()


def started(servers: list[RedisServer], folder: Path, **options: str) -> RedisServer:
    server = RedisServer(
        folder, options={name.replace("_", "-"): value for name, value in options.items()}
    )
    servers.append(server)
    server.start()
    return server


async def refusal(url: str, username: str = "", password: str = "") -> StartError:
    """Return the error with which a store does not start."""
    replica = Replica(RedisStore(url, patience=5.0, username=username, password=password))
    try:
        with pytest.raises(StartError) as caught:
            await replica.start()
    finally:
        await replica.stop()
    for secret in (SECRET, password):
        assert not secret or secret not in f"{caught.value} {caught.value.hint}"
    return caught.value


async def works(store: RedisStore) -> None:
    """Check that every kind of command is permitted and works."""
    replica = Replica(store)
    await replica.start()
    try:
        log = store.open("s", b"h")
        await replica.stored(log, b"1")
        reading = await replica.reading("s")
        assert not await store.is_followed("s")
        claimed = await replica.claim("s", 1)
        assert claimed is not None
        await replica.stored(claimed, b"2")
        await reading.until_it_has(3)
        reading.followed.close()
        await replica.ended(claimed, b"end")
        store.drop("s")
        assert await store.put_if_absent("n", b"1", 9) is None
        await store.put("n", b"2", 9)
        assert await store.get("n") == b"2"
        await store.delete("n")
        assert await store.exchange(b"1") == {}
        assert store.problem == ""
    finally:
        await replica.stop()


async def test_a_server_that_is_not_there() -> None:
    error = await refusal(f"redis://user:{SECRET}@127.0.0.1:{free_port()}/3")
    assert re.fullmatch(r"The store at redis://127.0.0.1:\d+/3 cannot be reached\.", str(error))
    assert error.hint == "Check that it runs there and accepts connections."


async def test_a_server_without_tls(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path)
    error = await refusal(server.url.replace("redis://", "rediss://"))
    assert "does not answer" in str(error)
    assert "speaks TLS" in error.hint


async def test_a_password(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path, requirepass=SECRET)
    assert "needs a password" in str(await refusal(server.url))
    assert "does not accept" in str(await refusal(server.url, password="wrong"))
    assert "does not accept" in str(await refusal(server.url, "nobody", SECRET))
    await works(RedisStore(server.url, patience=5.0, password=SECRET))
    in_url = server.url.replace("127", f":{SECRET}@127")
    await works(RedisStore(in_url, patience=5.0))
    assert SECRET not in repr(parse_address(in_url)) + str(parse_address(in_url))


async def test_the_access_rules_of_the_docs_are_enough(
    servers: list[RedisServer], tmp_path: Path
) -> None:
    found = re.search(r"^user penstock (.*)$", DOCS.read_text(encoding="utf-8"), re.M)
    assert found is not None
    rules = found[1].replace(">PASSWORD", f">{SECRET}")
    server = started(servers, tmp_path, user=f"penstock {rules}")
    await works(RedisStore(server.url, patience=5.0, username="penstock", password=SECRET))
    async with Redis(port=server.port, username="penstock", password=SECRET) as redis:
        for words in (("GET", "other"), ("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*")):
            with pytest.raises(Exception, match="no permission"):
                await redis.execute_command(*words)  # type: ignore[no-untyped-call]


async def test_a_user_who_lacks_one_of_the_rules_is_told_at_the_start(
    servers: list[RedisServer], tmp_path: Path
) -> None:
    found = re.search(r"^user penstock (.*)$", DOCS.read_text(encoding="utf-8"), re.M)
    assert found is not None
    rules = found[1].replace(">PASSWORD", f">{SECRET}").split()
    permitted = [rule for rule in rules if rule.startswith("+")]
    assert len(permitted) > 30
    server = started(servers, tmp_path, databases="2")
    async with Redis(port=server.port) as redis:
        for rule in permitted:
            others = [each for each in rules if each != rule]
            await redis.execute_command("ACL", "SETUSER", f"no{rule}", *others)  # type: ignore[no-untyped-call]
    url = server.url.removesuffix("0") + "1"  # so that the database must be selected
    for rule in permitted:
        error = await refusal(url, f"no{rule}", SECRET)
        assert "does not permit a command" in str(error), rule
        assert "docs/stores.md" in error.hint
    async with Redis(port=server.port, db=1) as redis:
        assert await redis.keys(f"{PREFIX}trial:*") == []


async def test_a_database_that_is_not_there(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path)
    error = await refusal(server.url.removesuffix("0") + "99")
    assert "has no database with this number" in str(error)
    assert "databases" in error.hint


async def test_a_server_with_too_many_clients(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path, maxclients="1")
    async with Redis(port=server.port, single_connection_client=True) as redis:
        await redis.ping()
        error = await refusal(server.url)
    assert "maxclients" in error.hint


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00", b""])
async def test_a_server_that_is_not_redis(
    says: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)

    async with tcp_server(answer) as (_, port):
        error = await refusal(f"redis://127.0.0.1:{port}/0")
    assert str(error).endswith("ended the connection.")
    assert "rediss://" in error.hint
    assert not caplog.records
    assert capfd.readouterr().err == ""


async def test_a_user_who_may_not_write_logs(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path, user=f"reader on >{SECRET} ~* +@read +@connection")
    error = await refusal(server.url, "reader", SECRET)
    assert "does not permit" in str(error)
    assert "docs/stores.md" in error.hint


async def test_a_full_server(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path, maxmemory="100kb")
    assert "is full" in str(await refusal(server.url))


async def test_a_replica_of_the_store(servers: list[RedisServer], tmp_path: Path) -> None:
    primary = started(servers, tmp_path)
    second = started(servers, tmp_path, replicaof=f"127.0.0.1 {primary.port}")
    assert "read-only replica" in str(await refusal(second.url))


async def test_a_cluster(servers: list[RedisServer], tmp_path: Path) -> None:
    # By default Redis adds 10,000 to its port, and that one may be somebody else's.
    options = {"cluster_enabled": "yes", "cluster_port": str(free_port())}
    server = started(servers, tmp_path, **options)
    async with Redis(port=server.port) as redis:
        await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
    error = await refusal(server.url)
    assert "is a cluster" in str(error)


async def test_an_unknown_format(servers: list[RedisServer], tmp_path: Path) -> None:
    server = started(servers, tmp_path)
    async with Redis(port=server.port) as redis:
        await redis.set(FORMAT_KEY, "2 abc")
    assert "a format that this version of Penstock does not know" in str(await refusal(server.url))
    async with Redis(port=server.port) as redis:
        assert await redis.keys(f"{PREFIX}*") == []


async def test_the_certificate_is_verified(
    servers: list[RedisServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    port = free_port()
    server = started(
        servers, tmp_path, port="0", tls_port=str(port), tls_auth_clients="no",
        tls_cert_file=str(tmp_path / "cert.pem"), tls_key_file=str(tmp_path / "key.pem"),
        tls_ca_cert_file=str(tmp_path / "authority.pem"),
    )  # fmt: skip
    assert server.url.startswith("redis://")
    url = f"rediss://127.0.0.1:{port}/0"
    assert "no certificate that this machine trusts" in str(await refusal(url))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    await works(RedisStore(url, patience=5.0))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@host:notaport/0",
        f"redis://:{SECRET}@host/notanumber",
        f"http://:{SECRET}@host/0",
        f"redis://:{SECRET}@/0",
        f"redis://:{SECRET}@host/0?retries=9",
        f"redis://:{SECRET}@host/0?wait=-1",
        f"redis://:{SECRET}@host/0?wait",
        f"redis://:{SECRET}@host/0#1",
    ],
)
def test_an_address_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(StartError) as caught:
        RedisStore(url, patience=5.0)
    assert SECRET not in f"{caught.value} {caught.value.hint}"


def test_an_address_has_defaults() -> None:
    address = parse_address("redis://host?wait=2")
    assert (address.host, address.port, address.db, address.wait) == ("host", 6379, 0, 2)
    assert str(parse_address("rediss://u:p%40@[::1]:7/2")) == "rediss://[::1]:7/2"
    assert parse_address("redis://u:p%40@h").password == "p@"
    assert parse_address("redis://u:p@h", "v", "q").password == "q"


@pytest.mark.parametrize("package", ["redis", "hiredis"])
def test_without_the_packages_the_error_has_the_command(package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from penstock.errors import StartError
try:
    import penstock.store.redis
except StartError as error:
    print(error, error.hint)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert f"needs the package {package!r}" in output
    assert "[redis]" in output


async def test_calls_of_a_store_that_is_gone_are_store_errors(
    servers: list[RedisServer], tmp_path: Path
) -> None:
    server = started(servers, tmp_path)
    replica = Replica(RedisStore(server.url, patience=5.0))
    await replica.start()
    server.kill()
    calls = [
        replica.store.get("n"),
        replica.claim("s", 1),
        replica.store.is_followed("s"),
        replica.store.exchange(b""),
        replica.reading("s"),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=r"^The store at redis://127.0.0.1:\d+/0 cannot be"):
            await call
    await replica.stop()
