"""The files for Ray fit Penstock. `make ray-check` runs them on a cluster (tests/ray)."""

import ast
from pathlib import Path

import typer
import yaml

from penstock.cli.main import app

SHIPPED = Path(__file__).parents[2] / "deploy" / "ray"


def test_the_flags_in_rays_configuration_exist() -> None:
    config = yaml.safe_load((SHIPPED / "config.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    flags = application["args"]["flags"]
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    parsed = serve.make_context("serve", list(flags))
    assert parsed.params["engine"] == "vllm"
    assert parsed.params["log"].startswith("redis://")
    assert parsed.params["keys"]


def test_the_names_in_rays_configuration_are_those_of_the_application() -> None:
    """Read the file without importing it, because Ray is not installed here."""
    config = yaml.safe_load((SHIPPED / "config.yaml").read_text(encoding="utf-8"))
    (application,) = config["applications"]
    module, _, function = application["import_path"].partition(":")
    tree = ast.parse((SHIPPED / f"{module}.py").read_text(encoding="utf-8"))
    names = {each.name for each in tree.body if isinstance(each, ast.ClassDef | ast.FunctionDef)}
    assert {function, *(each["name"] for each in application["deployments"])} <= names
