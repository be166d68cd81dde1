"""The Kubernetes files: valid by Kubernetes' own schemas, and true of Penstock itself."""

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # it has no annotations
import pytest
import yaml

from penstock.observe.metrics import METRICS
from tests.support.deployed import DEPLOY, settings_given, unknown_variables
from tests.support.proxies import free_port
from tests.support.raw import ask, request
from tests.support.servers import serve

FOLDER = DEPLOY / "kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
VERSION = "1.32"
# Of others than Kubernetes, which therefore has no schema for them.
CUSTOM = {"Kustomization", "PodMonitor", "HTTPRoute"}
# What a server takes beyond both of its times for slow clients and for the engine's end.
END_S = 6


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


def test_the_probes_paths_answer_at_the_admin_port() -> None:
    assert len(probes()) == 3
    port = free_port()
    with serve(engine="mock", admin_port=port):
        for probe in probes().values():
            asked = request("GET", probe["path"])
            assert ask(port, asked).status == 200
