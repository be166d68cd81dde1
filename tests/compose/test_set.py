"""The compose set under streams: kills, upgrades and restarts cut nothing that can be resumed."""

import re

import pytest

from tests.compose.compose_set import FOLDER, REPLICAS, URL, Answer, ComposeSet, documented
from tests.support.waiting import eventually

RESTART_TIMEOUT_S = 60
KILLED = 137
UP = re.compile(r'instance="(\w+):9000"} => 1 ')
ZOMBIES = "sh -c 'grep -l ^State:.Z /proc/[0-9]*/status 2>/dev/null'"


def check_all(answers: list[Answer]) -> None:
    """Check that the answers were not yet over, and that they end whole."""
    assert all(answer.is_running() for answer in answers)
    for answer in answers:
        answer.check()


def test_the_set_comes_up_healthy_by_the_documented_commands(running: ComposeSet) -> None:
    states = running.states()
    assert states.keys() == {*REPLICAS, "valkey", "haproxy"}
    for service, state in states.items():
        assert state["State"] == "running"
        # HAProxy has no health check: it runs once all replicas are healthy.
        assert state["Health"] == ("" if service == "haproxy" else "healthy")


def test_an_answer_streams_through_haproxy(whole: ComposeSet) -> None:
    with whole.answers(1, num_tokens=60) as (answer,):
        # Its first tokens are here, and the last ones are not made yet.
        assert sum(whole.streams().values()) == 1
        answer.check()


def test_a_replica_that_is_killed_costs_no_character(whole: ComposeSet) -> None:
    with whole.answers(6, num_tokens=400) as answers:
        ((busiest, num_streams),) = whole.streams().most_common(1)
        assert num_streams
        whole.run(f"docker compose kill --signal KILL {busiest}")
        check_all(answers)
    state = whole.states()[busiest]
    assert (state["State"], state["ExitCode"]) == ("exited", KILLED)
    whole.up()
    assert whole.states()[busiest]["Health"] == "healthy"


@pytest.mark.parametrize("victim", ["server", "engine"])
def test_a_process_that_dies_is_replaced_and_costs_no_character(
    whole: ComposeSet, victim: str
) -> None:
    with whole.answers(6, num_tokens=400) as answers:
        ((busiest, _),) = whole.streams().most_common(1)
        before = whole.inspect(busiest)["RestartCount"]
        whole.kill(busiest, f"penstock: {victim}")
        check_all(answers)
    died = 1 if victim == "server" else 0
    assert eventually(
        lambda: whole.inspect(busiest)["RestartCount"] == before + died, RESTART_TIMEOUT_S
    )
    assert eventually(lambda: whole.states()[busiest]["Health"] == "healthy", RESTART_TIMEOUT_S)
    # Docker's init reaps what a killed process leaves behind.
    assert eventually(lambda: not whole.inside(busiest, ZOMBIES)[1])


def test_an_upgrade_and_a_rollback_cut_no_stream(whole: ComposeSet) -> None:
    upgrade = documented("docker build --tag penstock:0.2.0")
    rollback = "\n".join(line for line in upgrade.splitlines() if "docker build" not in line)
    rollback = rollback.replace("penstock:0.2.0", "penstock")
    with whole.answers(6, num_tokens=5000) as answers:
        for commands, image in ((upgrade, "penstock:0.2.0"), (rollback, "penstock")):
            whole.run(commands)
            states = whole.states()
            for replica in REPLICAS:
                assert states[replica]["Image"] == image
                assert states[replica]["Health"] == "healthy"
        check_all(answers)
    whole.run("rm .env")


def test_a_deploy_of_all_replicas_at_once_cuts_no_stream(whole: ComposeSet) -> None:
    whole.run("docker tag penstock penstock:next")
    with whole.answers(6, num_tokens=1200) as answers:
        whole.up("IMAGE=penstock:next")
        assert {whole.states()[replica]["Image"] for replica in REPLICAS} == {"penstock:next"}
        assert sum(whole.streams().values()) == len(answers)
        check_all(answers)


def test_a_restart_of_the_store_costs_no_character(whole: ComposeSet) -> None:
    with whole.answers(6, num_tokens=600) as answers:
        whole.run("docker compose restart valkey")
        check_all(answers)


def test_a_new_key_is_read_at_the_documented_signal_and_serves_at_each_replica(
    whole: ComposeSet,
) -> None:
    whole.run("docker run --rm penstock key bob >> penstock/keys.toml")
    before = num_reads(whole)
    whole.run("docker compose kill --signal HUP one two three")
    assert eventually(lambda: num_reads(whole) == before + len(REPLICAS))
    for replica in REPLICAS:
        assert whole.states()[replica]["State"] == "running"


def num_reads(whole: ComposeSet) -> int:
    """Return how often the replicas say that they have read the keys again."""
    return whole.run("docker compose logs one two three").count("the server has 2 keys")


def test_a_proxy_on_the_machine_says_who_its_client_is(whole: ComposeSet) -> None:
    client = "203.0.113.7"
    whole.run(
        f"curl --fail --silent --header 'X-Forwarded-For: {client}' {URL}/v1/models"
        f" --header 'Authorization: Bearer {whole.key}'"
    )
    assert eventually(lambda: f'"client": "{client}"' in whole.run("docker compose logs"))


def test_prometheus_scrapes_each_replica_and_has_the_alerts(whole: ComposeSet) -> None:
    monitoring = "docker compose --profile monitoring"
    whole.run(f"{monitoring} up --detach --wait prometheus")
    inside = "docker exec penstock-prometheus-1 promtool"
    found = whole.run(f"{inside} check config /etc/prometheus/prometheus.yml")
    assert re.search(r"SUCCESS: [1-9]\d* rules found", found), found
    asked = f"{inside} query instant http://127.0.0.1:9090 'sum(up) by (instance)'"
    assert eventually(lambda: set(UP.findall(whole.run(asked))) == set(REPLICAS))
    whole.run(f"{monitoring} rm --stop --force prometheus")


def test_all_containers_end_by_themselves_under_endless_streams_which_wait_in_the_store(
    whole: ComposeSet,
) -> None:
    with whole.answers(3, num_tokens=100_000):
        whole.run("docker compose stop")
    states = whole.states()
    assert {service: state["ExitCode"] for service, state in states.items()} == dict.fromkeys(
        states, 0
    )
    whole.run("docker compose down")
    assert not whole.states()
    assert not whole.machine.run("docker network ls --quiet --filter name=penstock", FOLDER)
    whole.up()
    assert sum(whole.streams().values()) == 3
