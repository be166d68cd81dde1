"""The npm package of the JavaScript client: its files, its types, its README, Node and Deno."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import penstock
from tests.docs.pages import ROOT, blocks_of
from tests.faults.proxy import Faults, cut, proxy_in_a_thread
from tests.javascript.programs import CLIENT, HERE, Told, asked, node, running
from tests.support.npm import npm_package
from tests.support.proxies import replaced
from tests.support.servers import serve

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the client as for a release; return a folder in which a program can import it."""
    node()
    npm = shutil.which("npm")
    if npm is None and os.environ.get("PENSTOCK_REQUIRE_NPM") != "1":
        pytest.skip("no npm found: install it (Debian, Ubuntu: apt-get install npm)")
    assert npm is not None
    folder = tmp_path_factory.mktemp("packed")
    command = [npm, "pack", str(CLIENT), "--pack-destination", str(folder), "--silent"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (file,) = folder.glob("*.tgz")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules" / "penstock-client")
    return folder


def test_the_package_has_the_modules_the_types_and_nothing_else(packed: Path) -> None:
    package = packed / "node_modules" / "penstock-client"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    modules = {f"src/{path.name}" for path in (CLIENT / "src").iterdir()}
    assert files == modules | {"LICENSE", "README.md", "index.d.ts", "package.json"}
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < 100_000
    about = json.loads((package / "package.json").read_text())
    assert about["version"] == penstock.__version__
    assert "dependencies" not in about
    assert "scripts" not in about  # nothing runs when somebody installs it
    assert (package / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_the_modules_have_the_types_that_the_package_declares() -> None:
    compiler = npm_package("typescript", "6.0.3") / "bin" / "tsc"
    command = [node(), str(compiler), "--project", str(HERE)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_every_program_in_its_readme_runs(packed: Path) -> None:
    programs = [block.code for block in blocks_of(CLIENT / "README.md") if block.language == "js"]
    assert len(programs) == 5
    with serve(engine="mock", mock_interval=0, engine_arg=["length=100"]) as server:
        for number, program in enumerate(programs):
            file = packed / f"program{number}.mjs"
            file.write_text(replaced(program, URL, server.url), encoding="utf-8")
            command = [node(), str(file)]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (ran.returncode, ran.stderr) == (0, ""), program
            assert ran.stdout
    assert re.match(r"422 out_of_range .*max_tokens", ran.stdout)  # the last one


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the test has Deno for Linux on x86-64 only",
)
def test_a_cut_stream_goes_on_in_deno() -> None:
    deno = npm_package("@deno/linux-x64-glibc", "2.9.6") / "deno"
    deno.chmod(0o755)
    arguments = ["numbered=true", "length=100"]
    with (
        serve(engine="mock", mock_interval=0.005, engine_arg=arguments) as server,
        proxy_in_a_thread(server.address) as proxy,
    ):
        faults = iter([Faults(down=[cut(1500)]), Faults(down=[cut(1500)])])
        proxy.faults_of = lambda _: next(faults, Faults())
        what = asked(f"http://127.0.0.1:{proxy.address[1]}", "stream", {"prompt": "D"})
        program = [str(deno), "run", "--quiet", "--no-lock", "--allow-net", "--allow-read"]
        with running(what, program) as lines:
            told = Told(list(lines))
    assert told.text == "".join(f"D:{number} " for number in range(100))
    assert told.end["numResumes"] == 2
