"""The built wheel works alone in an empty environment."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.built import ROOT, built_wheel

PATIENCE_S = 60
# Making environments and filling them takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_model_the_page_and_nothing_of_the_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "penstock/model/rill.gguf" in names
    assert "penstock/page/index.html" in names
    assert "penstock/page/client/index.js" in names
    assert not [name for name in names if name.endswith(".d.ts")]
    assert "penstock/py.typed" in names
    assert not [
        name
        for name in names
        if name.startswith(("tests", "tools", "training", "benchmarks", "clients"))
    ]


def test_the_wheel_alone_serves_the_model_and_the_page(wheel: Path, tmp_path: Path) -> None:
    empty = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    bin_dir = tmp_path / "venv" / "bin"
    install = [str(bin_dir / "python"), "-m", "pip", "install", "-q", str(wheel)]
    subprocess.run(install, check=True, env=empty)
    with subprocess.Popen(
        [bin_dir / "penstock", "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=empty,
        cwd=tmp_path,  # not the checkout, so that nothing is read from it
    ) as server:
        assert server.stderr is not None
        url, said = "", []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"page and API\s+(http://\S+)", line):
                url = found[1]
                break
        assert url, "".join(said)
        try:
            with httpx.Client(base_url=url, timeout=PATIENCE_S) as http:
                page = http.get("/", headers={"Accept": "text/html"})
                module = http.get("/page/client/index.js")
                body = {"prompt": "Once upon a time", "max_tokens": 20, "stream": False}
                answer = http.post("/generate", json=body)
        finally:
            server.terminate()
            server.wait()
    assert page.status_code == 200
    assert "<title>" in page.text
    assert "Penstock" in module.text
    assert module.headers["content-type"].startswith("text/javascript")
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert server.returncode == 0
