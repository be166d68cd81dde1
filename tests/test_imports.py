"""Who may import whom: the arrows of docs/architecture.md, held by a walk over every file."""

import ast
from pathlib import Path

import pytest

import penstock
from penstock.errors import PROBLEMS

ROOT = Path(penstock.__file__).parent
WORDS = {"events", "request", "text", "sse", "errors"}
LIBRARIES_OF_HTTP_SERVERS = {"fastapi", "starlette", "granian", "uvicorn", "pydantic"}

# package or module → what of ours it may import
ALLOWED: dict[str, set[str]] = {
    "events": set(),
    "request": set(),
    "errors": set(),
    "text": set(),
    "sse": set(),
    "settings": {"errors"},
    "observe": {"observe"},
    "engine": {"events", "request", "errors", "text", "engine", "settings"},
    "stream": WORDS | {"stream", "engine.protocol", "observe.meter"},
    "web": WORDS | {"web", "stream", "observe", "api.openai.errors", "engine.protocol"},
    "api": WORDS | {"api", "web", "stream", "settings", "engine", "observe", "__init__"},
    "client": {"events", "sse", "client"},
    "bench": {"sse", "bench", "__init__"},
    "app": WORDS | {"api", "web", "stream", "engine.process", "settings"},
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every imported name in the file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name}: imports are absolute here"
            if node.module == "penstock":
                found |= {f"penstock.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    place = path.relative_to(ROOT).with_suffix("")
    owner = place.parts[0]
    if owner not in ALLOWED:
        assert owner in {"__init__", "__main__", "cli", "server"}, f"{owner}: where does it belong?"
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


def test_the_client_starts_without_the_server_s_dependencies() -> None:
    allowed = {"httpx", "msgspec"}
    standard = __import__("sys").stdlib_module_names
    for path in (ROOT / "client").rglob("*.py"):
        for name in imports_of(path):
            top = name.partition(".")[0]
            assert top in allowed or top in standard or top == "penstock", f"{path.name}: {name}"


def test_every_code_that_the_server_reports_is_in_the_table_of_problems() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            called = node.func.attr if isinstance(node.func, ast.Attribute) else called
            place = {"Problem": 0, "EngineUnavailable": 0, "fail": 0, "give_up": 0, "FieldError": 1}
            arguments = node.args[place.get(called, 99) :]
            if arguments and isinstance(arguments[0], ast.Constant):
                assert arguments[0].value in PROBLEMS, f"{path.name}: {arguments[0].value!r}"
