"""The Kubernetes files: valid by Kubernetes' own schemas, and true of Penstock itself."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it has no annotations
import psutil
import pytest
import redis
import yaml

from penstock.observe.metrics import METRICS
from tests.store.servers import find
from tests.support.deployed import DEPLOY, settings_given, unknown_variables
from tests.support.ports import free_port
from tests.support.raw import ask, request
from tests.support.servers import serve
from tests.support.waiting import eventually

FOLDER = DEPLOY / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSION = "1.32"
# Of others than Kubernetes, which therefore has no schema for them.
CUSTOM = {"Kustomization", "PodMonitor", "HTTPRoute", "InferencePool"}
# What a server takes beyond both of its times for slow clients and for the engine's end.
END_S = 6
PASSWORD = "not-shown-to-anyone"


def documents() -> Iterator[dict[str, Any]]:
    """Yield the objects of all files."""
    for file in FILES:
        yield from yaml.safe_load_all(file.read_text(encoding="utf-8"))


def named(kind: str, name: str = "penstock") -> dict[str, Any]:
    """Return the only object of this kind and name."""
    found = [
        each for each in documents() if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    (only,) = found
    return only


def pod() -> dict[str, Any]:
    """Return the specification of Penstock's pods."""
    found: dict[str, Any] = named("Deployment")["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    """Return the only container of Penstock's pods."""
    (only,) = pod()["containers"]
    found: dict[str, Any] = only
    return found


def probes() -> dict[str, dict[str, Any]]:
    """Return the probes of Penstock's container, by name."""
    return {name: each["httpGet"] for name, each in container().items() if name.endswith("Probe")}


def test_kubernetes_own_schemas_accept_every_object() -> None:
    kinds = [each["kind"] for each in documents()]
    assert set(kinds) > CUSTOM
    for each in documents():
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = named("Deployment")
    wrong["spec"]["replikas"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_the_kustomization_names_every_file() -> None:
    text = (FOLDER / "kustomization.yaml").read_text(encoding="utf-8")
    named_ = set(re.findall(r"^ +(?:# )?- (\w+\.yaml)$", text, re.MULTILINE))
    assert named_ == {file.name for file in FILES} - {"kustomization.yaml"}


def test_flags_variables_and_metrics_exist_and_times_agree() -> None:
    command, *flags = container()["args"]
    assert command == "serve"
    settings = settings_given(flags)
    needed = settings.drain_grace + settings.drain_timeout + END_S
    assert pod()["terminationGracePeriodSeconds"] >= needed
    assert settings.drain_grace > 2 * container()["readinessProbe"]["periodSeconds"]
    for file in FILES:
        assert not unknown_variables(file.read_text(encoding="utf-8"))
    (scaled,) = named("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert scaled["pods"]["metric"]["name"] in {metric.name for metric in METRICS}


def test_ports_and_labels_agree() -> None:
    settings = settings_given(container()["args"][1:])
    ports = {each["name"]: each["containerPort"] for each in container()["ports"]}
    assert ports == {"http": settings.port, "admin": settings.admin_port}
    (service,) = named("Service")["spec"]["ports"]
    assert service["targetPort"] in ports
    assert {each["port"] for each in probes().values()} <= ports.keys()
    (scraped,) = named("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (scraped["port"], scraped["path"]) == ("admin", "/metrics")
    labels = named("Deployment")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        named("Deployment")["spec"]["selector"]["matchLabels"],
        named("Service")["spec"]["selector"],
        named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        named("PodMonitor")["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    (store,) = named("Service", "valkey")["spec"]["ports"]
    assert settings.log == f"redis://valkey:{store['port']}/0"


def test_the_endpoint_picker_reads_gauges_that_exist_where_they_are() -> None:
    settings = settings_given(container()["args"][1:])
    pool = named("InferencePool")["spec"]
    labels = named("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert pool["selector"]["matchLabels"] == labels
    assert pool["targetPorts"] == [{"number": settings.port}]
    config = yaml.safe_load(named("ConfigMap", "penstock-picker")["data"]["penstock.yaml"])
    plugins = {each["type"]: each.get("parameters", {}) for each in config["plugins"]}
    assert plugins["metrics-data-source"]["port"] == settings.admin_port
    extractor = plugins["core-metrics-extractor"]
    (ours,) = extractor["engineConfigs"]
    assert extractor["defaultEngine"] == ours["name"]
    # The model server protocol of the Gateway API inference extension, proposal 003.
    contract = ("queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec")
    kinds = {metric.name: metric.kind for metric in METRICS}
    assert [kinds[ours[each]] for each in contract] == ["gauge"] * 3
    (profile,) = config["schedulingProfiles"]
    assert {each["pluginRef"] for each in profile["plugins"]} <= plugins.keys()


def test_the_pool_s_picker_runs_where_the_gateway_asks_with_the_configuration_of_its_pool() -> None:
    asked = named("InferencePool")["spec"]["endpointPickerRef"]
    service = named("Service", asked["name"])["spec"]
    (port,) = service["ports"]
    assert port["port"] == asked["port"]["number"]
    template = named("Deployment", "penstock-picker")["spec"]["template"]
    assert template["metadata"]["labels"] == service["selector"]
    pod = template["spec"]
    (container,) = pod["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    flags = dict(each.removeprefix("--").split("=", 1) for each in container["args"])
    assert flags["grpc-port"] == str(ports[port["targetPort"]])
    for probe in ("livenessProbe", "readinessProbe"):
        assert str(container[probe]["grpc"]["port"]) == flags["grpc-health-port"]
    assert named("InferencePool", flags["pool-name"])
    (mount,) = container["volumeMounts"]
    folder, _, file = flags["config-file"].rpartition("/")
    assert folder == mount["mountPath"]
    (volume,) = pod["volumes"]
    assert file in named("ConfigMap", volume["configMap"]["name"])["data"]
    assert pod["terminationGracePeriodSeconds"] > int(flags["drain-timeout"].removesuffix("s"))
    (subject,) = named("RoleBinding", "penstock-picker")["subjects"]
    assert subject["name"] == pod["serviceAccountName"]
    assert named(subject["kind"], subject["name"])
    role = named("RoleBinding", "penstock-picker")["roleRef"]
    rules = named(role["kind"], role["name"])["rules"]
    group = named("InferencePool")["apiVersion"].partition("/")[0]
    assert any(rule["apiGroups"] == [group] for rule in rules)
    assert {verb for rule in rules for verb in rule["verbs"]} == {"get", "list", "watch"}


def test_each_route_leads_to_what_there_is_and_cuts_no_stream() -> None:
    kinds = []
    for route in (each for each in documents() if each["kind"] == "HTTPRoute"):
        (rule,) = route["spec"]["rules"]
        (behind,) = rule["backendRefs"]
        kinds.append(behind.get("kind", "Service"))
        assert named(kinds[-1], behind["name"])
        assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert sorted(kinds) == ["InferencePool", "Service"]


def test_the_probes_paths_answer_at_the_admin_port() -> None:
    assert len(probes()) == 3
    port = free_port()
    with serve(engine="mock", admin_port=port):
        for probe in probes().values():
            asked = request("GET", probe["path"])
            assert ask(port, asked).status == 200


def test_no_secret_is_among_the_arguments_of_a_process() -> None:
    for kind, name in (("Deployment", "penstock"), ("StatefulSet", "valkey")):
        (only,) = named(kind, name)["spec"]["template"]["spec"]["containers"]
        given = " ".join([*only.get("command", ()), *only["args"]])
        secrets = [each["name"] for each in only.get("env", ()) if "valueFrom" in each]
        assert not any(each in given for each in secrets)


def test_the_store_takes_its_password_from_the_file_of_its_secret(tmp_path: Path) -> None:
    store = named("StatefulSet", "valkey")["spec"]["template"]["spec"]
    (only,) = store["containers"]
    mounts = {each["name"]: each["mountPath"] for each in only["volumeMounts"]}
    secret = next(each for each in store["volumes"] if "secret" in each)
    (item,) = secret["secret"]["items"]
    password = tmp_path / "password"
    password.write_text(PASSWORD, encoding="utf-8")  # as Kubernetes writes it: no line's end
    port = free_port()
    (script,) = only["args"]
    for old, new in {
        f"{mounts[secret['name']]}/{item['path']}": str(password),
        f"{mounts['tmp']}/password.conf": str(tmp_path / "password.conf"),
        "valkey-server": find("redis"),
        mounts["data"]: f"{tmp_path} --port {port}",
    }.items():
        assert old in script
        script = script.replace(old, new)
    process = subprocess.Popen([*only["command"], script], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as nobody, redis.Redis(port=port, password=PASSWORD) as ours:
            assert eventually(lambda: refuses(nobody))
            assert ours.ping()
        assert PASSWORD not in " ".join(psutil.Process(process.pid).cmdline())
        assert (tmp_path / "password.conf").stat().st_mode & 0o077 == 0
    finally:
        process.terminate()
        process.wait(30)


def refuses(client: redis.Redis) -> bool:
    """Return True if the store answers, and wants a password."""
    try:
        client.ping()
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False
    raise AssertionError("the store lets everybody in")
