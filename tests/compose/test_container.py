"""One container, as docs/docker.md starts it."""

from tests.compose.compose_set import KEY, documented
from tests.compose.machine import Machine
from tests.support.waiting import eventually

# A model that would be downloaded: the built-in one serves instead.
MODEL = "    --env PENSTOCK_MODEL=unsloth/Qwen3-0.6B-GGUF:Q4_K_M \\\n"
START_TIMEOUT_S = 60


def inspect(machine: Machine, what: str) -> str:
    """Return what Docker says of the container."""
    return machine.run(f"docker inspect --format '{{{{{what}}}}}' penstock").strip()


def test_the_documented_container_is_healthy_answers_with_a_key_and_stops_by_itself(
    machine: Machine,
) -> None:
    commands = documented("docker run --detach --name penstock")
    assert MODEL in commands
    (key,) = set(KEY.findall(machine.run(commands.replace(MODEL, ""), "/root")))
    assert eventually(
        lambda: inspect(machine, ".State.Health.Status") == "healthy", START_TIMEOUT_S
    )
    url = "http://127.0.0.1:8000/generate"
    ask = f"""curl --silent --include --json '{{"prompt": "Hello"}}' {url}"""
    assert "200 OK" in machine.run(f"{ask} --header 'Authorization: Bearer {key}'")
    assert "401 Unauthorized" in machine.run(ask)
    machine.run("docker stop penstock")
    assert inspect(machine, ".State.ExitCode") == "0"
    machine.run("docker rm penstock && docker volume rm penstock-models")
