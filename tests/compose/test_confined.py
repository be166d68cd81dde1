"""What the set's containers may do, and what strangers see of its secrets."""

import json

from tests.compose.compose_set import FOLDER, REPLICAS, ComposeSet

USERS = {"one": 10001, "two": 10001, "three": 10001, "valkey": 999, "haproxy": 99}
# A process may end meanwhile.
STATUS = "sh -c 'cat /proc/[0-9]*/status 2>/dev/null || true'"
CONNECT = "import socket; socket.create_connection(({host!r}, {port}), timeout=5)"


def test_every_process_is_an_ordinary_user_without_rights_in_a_root_that_is_read_only(
    running: ComposeSet,
) -> None:
    for service, user in USERS.items():
        found = processes(running, service)
        assert found
        for process in found:
            assert process["Uid"].split() == [str(user)] * 4, process
            for rights in ("CapEff", "CapPrm", "CapBnd"):
                assert int(process[rights], 16) == 0, process
            assert process["NoNewPrivs"] == "1", process
        assert running.inspect(service)["HostConfig"]["ReadonlyRootfs"]
        for place in ("/etc/hosts.new", "/usr/bin/new", "/run/secrets/new"):
            assert running.inside(service, f"touch {place}")[0] != 0
    for replica in REPLICAS:
        assert running.inside(replica, "touch /cache/model /tmp/new")[0] == 0
        assert running.inside(replica, "touch /etc/penstock/keys.toml")[0] != 0


def processes(running: ComposeSet, service: str) -> list[dict[str, str]]:
    """Return what the kernel says of each process in a container."""
    status, said = running.inside(service, STATUS)
    assert status == 0, said
    blocks = [block for block in said.split("Name:\t") if block]
    found = [
        dict(line.split(":\t", 1) for line in f"Name:\t{block}".splitlines() if ":\t" in line)
        for block in blocks
    ]
    # Docker's runtime starts a health check, and has not yet become it.
    return [each for each in found if not each["Name"].startswith("runc")]


def test_no_secret_is_in_what_docker_says_in_a_command_line_or_in_a_log(
    running: ComposeSet,
) -> None:
    with running.answers(1, num_tokens=20) as (answer,):
        answer.check()
    shown = [
        *(json.dumps(running.inspect(service)) for service in USERS),
        running.run("docker compose config"),
        running.run("docker compose logs"),
        running.run("docker compose top"),
        *("\0".join(process.cmdline()) for process in running.machine.processes()),
    ]
    assert len(running.password) == 48
    for text in shown:
        assert running.password not in text
        assert running.key not in text
    for replica in REPLICAS:
        status, said = running.inside(replica, "cat /proc/1/environ")
        assert status == 0
        assert running.password not in said


def test_only_the_replicas_reach_the_store_and_the_store_reaches_nobody(
    running: ComposeSet,
) -> None:
    store = address(running, "valkey", "store")
    reach = f'python3 -c "{CONNECT.format(host=store, port=6379)}"'
    for replica in REPLICAS:
        status, said = running.inside(replica, reach)
        assert status == 0, said
    # Their images have no Python, but bash.
    for service, host, port in (
        ("haproxy", store, 6379),
        ("valkey", address(running, "one", "clients"), 8000),
    ):
        status, _ = running.inside(service, f"timeout 5 bash -c '</dev/tcp/{host}/{port}'")
        assert status != 0
    status, said = running.inside(
        "haproxy", f"timeout 5 bash -c '</dev/tcp/{address(running, 'one', 'clients')}/8000'"
    )
    assert status == 0, said


def address(running: ComposeSet, service: str, network: str) -> str:
    """Return a container's address in a network of the set."""
    found = running.inspect(service)["NetworkSettings"]["Networks"][f"penstock_{network}"]
    return str(found["IPAddress"])


def test_only_haproxy_s_port_is_open_and_only_to_the_machine_itself(running: ComposeSet) -> None:
    said = running.machine.run("ss --listening --tcp --udp --numeric --no-header", FOLDER)
    addresses = [line.split()[4] for line in said.splitlines()]
    assert addresses == ["127.0.0.1:8000"]
