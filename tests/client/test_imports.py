"""The client imports penstock.events, penstock.sse, httpx and msgspec, and not the server.

It imports our own modules by relative names, because `penstock_client` has the same files.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import penstock.client

SHARED = {"penstock.events", "penstock.sse"}
SHARED_FILES = ("events.py", "sse.py")
OUTSIDE = {"httpx", "msgspec"}


def imports(file: Path) -> Iterator[str]:
    """Yield every name that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def test_the_client_imports_only_events_sse_httpx_and_msgspec() -> None:
    (folder,) = penstock.client.__path__
    files = [*Path(folder).glob("*.py"), *(Path(folder).parent / name for name in SHARED_FILES)]
    ours = {".", "..events", "..sse", *(f".{file.stem}" for file in files)}
    assert len(files) > 3
    for file in files:
        for name in imports(file):
            root = name.partition(".")[0]
            assert name in ours or root in OUTSIDE | sys.stdlib_module_names, (file.name, name)


def test_importing_the_client_loads_nothing_of_the_server() -> None:
    code = "import json, sys, penstock.client; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    loaded = json.loads(run.stdout)
    assert {each for each in loaded if each.startswith("penstock.")} <= {
        *SHARED,
        *(each for each in loaded if each.startswith("penstock.client")),
    }
    roots = {each.partition(".")[0] for each in loaded}
    assert not roots & {"fastapi", "starlette", "granian", "pydantic", "uvloop", "xllamacpp"}
