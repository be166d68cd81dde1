"""Other projects' test suites, run against a real server with the built-in model.

They need packages that do not go together with ours, so they run in an environment of their own.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.environments import environment, pip_install
from tests.support.raw import ask, request
from tests.support.servers import RunningServer, serve

# The first time, pip installs 80 packages.
pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
PATIENCE_S = 240
# What llm-comply tests and we do not do, by the name of its test.
IMAGES = "the model takes text only"
NO_MODEL = "a request without a model is answered: the server has only one"
UNMET = {
    "chat-image-input": IMAGES,
    "chat-error-handling": NO_MODEL,
    "image-input": IMAGES,
    "error-handling": NO_MODEL,
}


@pytest.fixture(scope="module")
def bin_folder() -> Path:
    """The programs of the environment, which is made the first time."""
    listed = HERE / "requirements.txt"
    try:
        folder = environment(
            "foreign", listed.read_text(), lambda each: pip_install(each, "-r", str(listed))
        )
    except subprocess.CalledProcessError as error:
        reason = f"the packages of tests/foreign cannot be installed (pip: {error.returncode})"
        if os.environ.get("PENSTOCK_REQUIRE_FOREIGN") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder / "bin"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve() as running:
        yield running


@pytest.mark.parametrize("form", ["openai-chat", "open-responses"])
def test_llm_comply_passes(bin_folder: Path, server: RunningServer, form: str) -> None:
    command = [str(bin_folder / "llm-comply"), "--base-url", server.url + "/v1"]
    options = ["--api-key", "none", "--model", "rill", "--format", form, "--json"]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    results = json.loads(done.stdout)["results"]
    assert len(results) > 5
    failed = {each["id"]: each["errors"] for each in results if each["status"] == "failed"}
    assert set(failed) == set(UNMET) & {each["id"] for each in results}, failed


def test_langchain_s_standard_tests_pass(bin_folder: Path, server: RunningServer) -> None:
    done = subprocess.run(
        [
            *(str(bin_folder / "python"), "-m", "pytest", str(HERE / "langchain_suite.py")),
            *("--rootdir", str(HERE), "-c", os.devnull, "-q", "-p", "no:cacheprovider"),
            *("--noconftest", "--import-mode=importlib"),  # ours need our own packages
            *(
                "-o",
                "asyncio_mode=auto",
                "-o",
                "asyncio_default_test_loop_scope=session",
                "-o",
                "python_files=langchain_suite.py",
                "--tb=short",
            ),
        ],
        cwd=HERE,
        env={**os.environ, "PENSTOCK_URL": server.url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


def test_the_api_s_description_is_valid_openapi(
    bin_folder: Path, server: RunningServer, tmp_path: Path
) -> None:
    file = tmp_path / "openapi.json"
    file.write_bytes(ask(server.port, request("GET", "/openapi.json")).body)
    done = subprocess.run(
        [str(bin_folder / "openapi-spec-validator"), str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
