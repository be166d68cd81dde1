"""The distribution `penstock-client`: its wheel, without the server, in an empty environment."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of
from tests.faults.proxy import Faults, cut, proxy_in_a_thread
from tests.support.built import built_wheel
from tests.support.proxies import replaced
from tests.support.servers import serve

PROJECT = ROOT / "clients" / "python"
URL = "http://127.0.0.1:8000"
# Making environments and filling them takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(400)
CANCEL = """
from penstock_client import AsyncClient, Client

with Client("http://127.0.0.1:8000") as client, client.stream("C", max_tokens=5000) as stream:
    for number, text in enumerate(stream):
        if number == 2:
            stream.cancel()
print(stream.finish_reason)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(PROJECT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with what it needs; return the folder with these packages alone."""
    folder = tmp_path_factory.mktemp("installed")
    install = ["install", "--quiet", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
    return folder


def test_the_wheel_has_the_client_and_nothing_of_the_server(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    own = ("__init__.py", "events.py", "py.typed", "sse.py")
    client = {f"client/{path.name}" for path in (ROOT / "penstock" / "client").glob("*.py")}
    assert names == {f"penstock_client/{name}" for name in {*own, *client}}
    code = (PROJECT / "penstock_client" / "sse.py").read_bytes()
    assert zipfile.ZipFile(wheel).read("penstock_client/sse.py") == code  # not a link


def test_the_client_with_everything_it_needs_takes_less_than_5_mb(installed: Path) -> None:
    """With the compiled bytecode that pip adds."""
    files = [path for path in installed.rglob("*") if path.is_file()]
    assert any(path.suffix == ".pyc" for path in files)
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert not [path for path in files if path.parts[len(installed.parts)] == "penstock"]


def run(program: str, url: str, installed: Path) -> str:
    """Run a program that has only the installed packages; return what it prints."""
    alone = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-S", "-c", replaced(program, URL, url)]  # no site-packages
    ran = subprocess.run(
        command, capture_output=True, text=True, env=alone, cwd=installed, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_the_client_alone_streams_resumes_and_cancels(installed: Path) -> None:
    blocks = blocks_of(PROJECT / "README.md")
    arguments = ["numbered=true", "length=5000"]  # so it runs until it is cancelled
    streaming, resuming = (block.code for block in blocks if block.language == "python")
    with (
        serve(engine="mock", mock_interval=0.005, engine_arg=arguments) as server,
        proxy_in_a_thread(server.address) as proxy,
    ):
        faults = iter([Faults(down=[cut(1500)])])
        proxy.faults_of = lambda _: next(faults, Faults())
        said = run(streaming, f"http://127.0.0.1:{proxy.address[1]}", installed)
        text = "".join(f"Once:{number} " for number in range(40))
        assert said == f"{text}\nlength, 1 cuts\n"
        first, rest, refused, *_ = run(resuming, server.url, installed).splitlines()
        assert first.endswith(rest)
        assert rest.startswith("Once:11 ")
        assert refused.startswith("422 out_of_range ")
        assert run(CANCEL, server.url, installed) == "cancelled\n"
