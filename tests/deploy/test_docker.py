"""The Dockerfile and the files for Docker Compose: of their forms, and true of Penstock itself.

`make image-check` builds the image and runs it (tests/image).
"""

import fnmatch
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deployed import DEPLOY, settings_given, unknown_variables
from tests.support.ports import free_port
from tests.support.proxies import find
from tests.support.raw import generate, open_stream
from tests.support.servers import serve
from tests.support.waiting import eventually

ROOT = DEPLOY.parent
DOCKERFILE = ROOT / "Dockerfile"
FOLDER = DEPLOY / "docker"
COMPOSE = FOLDER / "compose.yaml"
REPLICAS = ("one", "two", "three")
# What a server takes beyond both of its times for slow clients and for the engine's end.
END_S = 6


def instructions(name: str) -> list[str]:
    """Return the arguments of the Dockerfile's instructions with this name."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split(None, 1)[1] for line in lines if line.split(None, 1)[:1] == [name]]


def variables() -> dict[str, str]:
    """Return the variables that the image sets."""
    (given,) = instructions("ENV")
    return dict(each.split("=", 1) for each in given.split())


def copied() -> list[Path]:
    """Return the files and folders of this repository that the image is built from."""
    sources = []
    for given in instructions("COPY"):
        if not given.startswith("--from"):
            sources += given.split()[:-1]
    return [ROOT / each for each in sources]


def composed() -> dict[str, Any]:
    """Return the compose file."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return found


def test_the_build_gets_the_files_that_it_copies_and_no_others() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored.index("*") < min(i for i, line in enumerate(ignored) if line.startswith("!"))
    sent = {ROOT / line[1:] for line in ignored if line.startswith("!")}
    assert sent == set(copied())
    assert all(each.exists() for each in sent)


def test_no_link_leads_out_of_what_the_build_gets() -> None:
    links = [each for each in files_of(copied()) if each.is_symlink()]
    assert links  # penstock/page/client
    for link in links:
        target = link.resolve()
        assert any(target.is_relative_to(each) for each in copied()), link


def files_of(places: list[Path]) -> Iterator[Path]:
    """Yield all entries below these folders, without following links."""
    for place in places:
        for folder, folders, files in os.walk(place):
            yield from (Path(folder, name) for name in (*folders, *files))


def test_the_image_has_an_extra_that_exists_and_the_user_of_kubernetes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = [each.removeprefix("EXTRAS=") for each in instructions("ARG") if "EXTRAS" in each]
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    for file in (project["readme"], *project["license-files"]):
        assert ROOT / file in copied()
    deployment = next(yaml.safe_load_all((DEPLOY / "kubernetes" / "penstock.yaml").read_text()))
    pod = deployment["spec"]["template"]["spec"]
    security = pod["securityContext"]
    assert instructions("USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    (container,) = pod["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert given["HF_HOME"] == variables()["HF_HOME"]
    assert instructions("VOLUME") == [given["HF_HOME"]]


def test_the_image_starts_penstock_without_a_shell() -> None:
    assert instructions("ENTRYPOINT") == ['["penstock"]']
    assert instructions("CMD") == ['["serve"]']
    assert not unknown_variables(DOCKERFILE.read_text(encoding="utf-8"))
    (exposed,) = instructions("EXPOSE")
    assert int(exposed) == settings_given([]).port


def test_the_health_check_succeeds_only_while_the_server_is_ready() -> None:
    (check,) = instructions("HEALTHCHECK")
    assert check.endswith('CMD ["python3", "/opt/penstock/is_ready.py"]')
    assert "deploy/docker/is_ready.py /opt/penstock/is_ready.py" in instructions("COPY")
    port = free_port()
    with serve(engine="mock", mock_interval=0.05, admin_port=port, drain_timeout=60) as server:
        assert health_at(port) == 0
        connection, _ = open_stream(server.port, generate(max_tokens=10_000))
        with connection:
            server.signal(signal.SIGTERM)
            assert eventually(lambda: health_at(port) == 1)
            assert server.process.poll() is None, "it must wait for its stream"
    assert health_at(port) == 1


def health_at(port: int) -> int:
    """Run the image's health check for this admin port; return its status."""
    command = [sys.executable, str(FOLDER / "is_ready.py")]
    environment = {**os.environ, "PENSTOCK_ADMIN_PORT": str(port)}
    return subprocess.run(command, env=environment, check=False).returncode


def test_compose_accepts_its_file(tmp_path: Path) -> None:
    assert is_composed(COMPOSE) == 0
    wrong = tmp_path / COMPOSE.name
    text = COMPOSE.read_text(encoding="utf-8")
    wrong.write_text(text.replace("stop_grace_period:", "stop_grace:"), encoding="utf-8")
    assert is_composed(wrong) != 0


def is_composed(file: Path) -> int:
    """Compare a file with the schema of compose files, which comes with check-jsonschema."""
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run([sys.executable, "-m", *command], capture_output=True).returncode


def test_each_replica_has_flags_that_exist_and_time_to_drain() -> None:
    services = composed()["services"]
    for name in REPLICAS:
        replica = services[name]
        command, *flags = replica["command"]
        assert command == "serve"
        settings = settings_given(flags)
        needed = settings.drain_grace + settings.drain_timeout + END_S
        assert seconds(replica["stop_grace_period"]) >= needed
        assert str(settings.admin_port) == variables()["PENSTOCK_ADMIN_PORT"]
        assert "penstock" in replica["entrypoint"]
        assert settings.log == "redis://valkey:6379/0"
        (network,) = composed()["networks"]["clients"]["ipam"]["config"]
        assert settings.trusted_proxy == [network["subnet"]]
        assert settings.keys.rpartition("/")[0] == "/etc/penstock" == instructions("WORKDIR")[-1]
        assert {"./penstock:/etc/penstock:ro", "models:/cache"} == set(replica["volumes"])
    assert not unknown_variables(COMPOSE.read_text(encoding="utf-8"))


def test_each_container_is_confined_and_only_two_ports_are_open_to_this_machine() -> None:
    services = composed()["services"]
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    assert {name for name, each in services.items() if not each.get("read_only")} == {"grafana"}
    ports = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert ports == {
        "haproxy": ["${LISTEN:-127.0.0.1:8000}:8000"],
        "grafana": ["127.0.0.1:3000:3000"],
    }
    assert services["valkey"]["networks"] == ["store"]
    assert composed()["networks"]["store"] == {"internal": True}


def test_the_password_of_the_store_stands_in_no_command_line() -> None:
    valkey = " ".join(composed()["services"]["valkey"]["command"])
    assert "--requirepass" not in valkey
    for name in REPLICAS:
        assert not settings_given(composed()["services"][name]["command"][1:]).log_password


def test_every_file_that_compose_mounts_is_there_or_is_yours() -> None:
    yours = {line.strip("/") for line in (FOLDER / ".gitignore").read_text().splitlines()}
    for service in composed()["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).is_file() or source.removeprefix("./") in yours
            else:
                assert source in composed()["volumes"]
    for secret in composed()["secrets"].values():
        assert fnmatch.fnmatch(secret["file"], "./secrets/*")


def test_haproxy_s_file_is_the_shipped_one_with_other_addresses() -> None:
    haproxy = composed()["services"]["haproxy"]
    shipped, ours = (
        settings_of(DEPLOY / "haproxy" / "haproxy.cfg"),
        settings_of(FOLDER / "haproxy.cfg"),
    )
    stop = ["global", "hard-stop-after 40s"]
    first = [*stop, "resolvers docker", "nameserver dns 127.0.0.11:53", "hold valid 1s"]
    assert ours[: len(first)] == first
    assert seconds(stop[-1].split()[-1]) < seconds(haproxy["stop_grace_period"])
    addresses = {"bind 127.0.0.1:8000": "bind :8000"}
    needs_certificate = "bind 127.0.0.1:8443 ssl crt models.pem alpn h2,http/1.1"
    shipped.remove(needs_certificate)
    checks = "default-server check inter 500ms fall 2 rise 1"
    addresses[checks] = f"{checks} resolvers docker resolve-prefer ipv4 init-addr libc,none"
    for number, name in enumerate(REPLICAS, 8001):
        addresses[f"server {name} 127.0.0.1:{number}"] = f"server {name} {name}:8000"
    assert addresses.keys() <= set(shipped)
    assert ours[len(first) :] == [addresses.get(line, line) for line in shipped]


def seconds(time: str) -> int:
    """Return how long a time like 45s is."""
    return int(time.removesuffix("s"))


def settings_of(file: Path) -> list[str]:
    """Return the lines of HAProxy's file that are no comments."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_haproxy_accepts_its_file() -> None:
    command = [find("haproxy"), "-c", "-f", str(FOLDER / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_prometheus_asks_each_replica_and_grafana_asks_prometheus() -> None:
    prometheus = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = prometheus["scrape_configs"]
    (its_job,) = shipped["scrape_configs"]
    assert job["job_name"] == its_job["job_name"]
    assert prometheus["rule_files"] == shipped["rule_files"]
    port = variables()["PENSTOCK_ADMIN_PORT"]
    (targets,) = [each["targets"] for each in job["static_configs"]]
    assert targets == [f"{name}:{port}" for name in REPLICAS]
    grafana = yaml.safe_load((FOLDER / "grafana" / "datasources.yaml").read_text(encoding="utf-8"))
    (source,) = grafana["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.parametrize("name", ["one", "two", "three"])
def test_haproxy_waits_for_each_replica_and_each_replica_for_the_store(name: str) -> None:
    services = composed()["services"]
    healthy = {"condition": "service_healthy"}
    assert services["haproxy"]["depends_on"][name] == healthy
    assert services[name]["depends_on"] == {"valkey": healthy}
    assert services["valkey"]["healthcheck"]["test"]
