"""Every import and every mention of an engine follows the arrows of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

import penstock
from penstock.engine.catalog import ENGINES
from penstock.errors import PROBLEMS

ROOT = Path(penstock.__file__).parent
WORDS = {"events", "request", "text", "sse", "errors"}
LIBRARIES_OF_HTTP_SERVERS = {"fastapi", "starlette", "granian", "uvicorn", "pydantic"}

# Our package or module → the parts of `penstock` that it may import.
ALLOWED: dict[str, set[str]] = {
    "events": set(),
    "request": set(),
    "errors": set(),
    "text": set(),
    "sse": set(),
    "supervision": set(),
    "draining": set(),
    "children": set(),
    "service": set(),
    "folders": set(),
    "settings": {"errors", "engine.catalog", "config_file"},
    "config_file": {"errors", "engine.catalog"},
    "observe": {"observe"},
    "store": {"errors", "store", "supervision"},
    "engine": {"events", "request", "errors", "engine", "supervision", "children", "folders"},
    "stream": WORDS
    | {"stream", "engine.protocol", "store.protocol", "observe.meter", "supervision"},
    "web": WORDS | {"web", "stream", "observe.meter", "supervision"},
    "api": WORDS
    | {"api", "web", "stream", "settings", "engine.protocol", "__init__"}
    | {"observe.metrics", "observe.history", "store.names", "store.protocol", "supervision"},
    "client": {"events", "sse", "client"},
    "bench": {"sse", "bench", "__init__"},
    "admin": {"api.native.errors", "observe.meter", "web"},
    "app": WORDS
    | {"admin", "api", "web", "store.names", "stream", "settings", "engine.protocol"}
    | {"observe.history"},
    "server": WORDS
    | {"app", "web", "stream", "observe", "settings", "engine.protocol", "engine.catalog"}
    | {"supervision", "service", "draining", "store.catalog", "store.names", "api.siblings"}
    | {"api.live.state", "api.stage"},
    "processes": {"processes", "server", "settings", "errors", "supervision", "children", "folders"}
    | {"engine.protocol", "engine.catalog", "observe", "web.listener", "api.siblings", "draining"},
    "cli": WORDS
    | {
        "cli",
        "client",
        "bench",
        "server",
        "processes",
        "children",
        "service",
        "settings",
        "observe.logs",
        "web.keys",
    }
    | {"web.key_file", "web.key_edits"}
    | {"engine.protocol", "engine.catalog", "__init__"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every imported name in the file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = module_of(node, path)
            if module == "penstock":
                found |= {f"penstock.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


def module_of(node: ast.ImportFrom, path: Path) -> str:
    """Return the absolute name of the module of a `from` import."""
    if node.level == 0:
        return node.module or ""
    place = path.relative_to(ROOT.parent)
    shared = place.parts[1] in {"__init__.py", "client"}  # `penstock_client` has these files too
    assert shared, f"{place}: imports are absolute here"
    package = place.parts[: -node.level]
    return ".".join([*package, node.module] if node.module else package)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    place = path.relative_to(ROOT).with_suffix("")
    owner = place.parts[0]
    if owner not in ALLOWED:
        assert owner in {"__init__", "__main__"}, f"{owner}: where does it belong?"
        return
    for name in imports_of(path):
        if name.startswith("penstock."):
            target = name.removeprefix("penstock.")
            if target.startswith("__"):
                continue
            allowed = any(
                target == each or target.startswith(each + ".") for each in ALLOWED[owner]
            )
            assert allowed, f"{place} may not import {target}"
        elif owner in {"engine", "stream", "client", "bench", "observe"} | WORDS:
            assert name.partition(".")[0] not in LIBRARIES_OF_HTTP_SERVERS, f"{place}: {name}"


OUTSIDE_ENGINE = [path for path in modules() if path.relative_to(ROOT).parts[0] != "engine"]
CLASSES_OF_ENGINES = {entry.target.partition(":")[2] for entry in ENGINES.values()}
LIBRARIES_OF_ENGINES = {entry.distribution for entry in ENGINES.values()} - {""}


@pytest.mark.parametrize("path", OUTSIDE_ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_engine_package_knows_an_engine(path: Path) -> None:
    for name in imports_of(path):
        assert name.partition(".")[0] not in LIBRARIES_OF_ENGINES, f"imports {name}"
        if name.startswith("penstock.engine"):
            assert name in {"penstock.engine.catalog", "penstock.engine.protocol"}, name
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                assert name not in CLASSES_OF_ENGINES | {"SupervisedEngine"}, name
            case ast.Constant(value=str(text)):
                assert text not in ENGINES.keys() | LIBRARIES_OF_ENGINES, f"names {text!r}"


def test_the_client_starts_without_the_server_s_dependencies() -> None:
    allowed = {"httpx", "msgspec"}
    standard = __import__("sys").stdlib_module_names
    for path in (ROOT / "client").rglob("*.py"):
        for name in imports_of(path):
            top = name.partition(".")[0]
            assert top in allowed or top in standard or top == "penstock", f"{path.name}: {name}"


def test_every_code_that_the_server_reports_is_in_the_table_of_problems() -> None:
    # The command line's own `fail` takes a sentence.
    for path in (path for path in modules() if "cli" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            place = 99  # the index of the argument that is a code
            match node.func:
                case ast.Name(id=name):
                    place = {"Problem": 0, "EngineUnavailable": 0, "FieldError": 1}.get(name, 99)
                case ast.Attribute(attr=name):
                    place = {"fail": 0, "give_up": 0}.get(name, 99)
            arguments = node.args[place:]
            if arguments and isinstance(arguments[0], ast.Constant):
                assert arguments[0].value in PROBLEMS, f"{path.name}: {arguments[0].value!r}"
