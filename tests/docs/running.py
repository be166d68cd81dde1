"""Runs the blocks of one page, from top to bottom, against a real server.

In: blocks (see `pages`). Out: what went wrong, block by block.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import trustme

import penstock
from penstock.errors import StartError
from penstock.settings import load_settings
from penstock.web.key_file import read_keys
from penstock.web.keys import hash_of, new_key
from tests.docs.pages import ROOT, SERVE, Block, Placeholders, console_commands, matches
from tests.page.conftest import MISSING, find_chromium
from tests.support.servers import RunningServer, serve

BLOCK_TIMEOUT_S = 120
HERE = Path(__file__).parent
BETWEEN = "\x1e"  # between the outputs of two commands
NEEDS_NODE = "no Node found: install Node 20 or later (Debian, Ubuntu: apt-get install nodejs)"


class SnippetError(AssertionError):
    """A block did not do what the page says."""


class PageRun:
    """The working directory, the server and the memory of one page."""

    def __init__(self, directory: Path, aside: Path) -> None:
        self.directory = directory
        self.aside = aside  # for files that are none of the page's
        self.placeholders = Placeholders()
        self.output = ""
        self.python = ""
        self._server: RunningServer | None = None
        self._keeping = contextlib.ExitStack()
        _furnish(directory)
        (aside / ".curlrc").write_text("fail-with-body\n")  # else curl ends a 404 with 0

    def close(self) -> None:
        """Stop the page's server. It must end cleanly."""
        self._server = None
        self._keeping.close()

    def all(self, blocks: Iterable[Block]) -> list[str]:
        """Run the blocks in order, and return what went wrong."""
        wrong = []
        for block in blocks:
            try:
                self.run(block)
            except (ValueError, StartError, AssertionError) as error:
                hint = getattr(error, "hint", "")
                wrong.append(f"{block.place} ({block.language}): {error} {hint}")
        return wrong

    def run(self, block: Block) -> None:
        """Run or check one block, unless it is marked `skip`.

        Raises SnippetError, ValueError or StartError if the block does not work, and pytest's
        Skipped if this machine lacks a program.
        """
        if not block.runs:
            return
        if problem := block.problem():
            raise SnippetError(problem)
        code = block.code
        if ":8000" in code or "STREAM_ID" in code or "KEY" in code:
            code = self.placeholders.fill_in(code, self._url(block))
        if name := block.actions.get("file"):
            (self.directory / name).write_text(code, encoding="utf-8")
        runner = getattr(self, f"_run_{block.language}", None)
        if runner is not None:
            runner(block, code)

    def _url(self, block: Block) -> str:
        if "starts-server" in block.actions or "flags" in block.actions:
            return "http://127.0.0.1:8000"  # of the server that the block itself begins
        if self._server is None:
            self._server = self._keeping.enter_context(serve())
        return self._server.url.replace("//0.0.0.0:", "//127.0.0.1:")

    def _run_bash(self, block: Block, code: str) -> None:
        if "flags" in block.actions:
            lines = code.replace("\\\n", " ").splitlines()
            code = "\n".join(line for line in lines if SERVE.search(line))
        # A server is started when the block has ended: in a terminal, nothing runs after it.
        record = self.aside / "serve"
        record.unlink(missing_ok=True)
        self._shell(SERVE.sub('$SERVE "$PWD"', code), SERVE=f"{sys.executable} {__file__} {record}")
        if "starts-server" in block.actions:
            commands = [json.loads(line) for line in record.read_text().splitlines()]
            for i, arguments in enumerate(commands):
                is_last = i == len(commands) - 1
                self._start(arguments, keep=is_last and block.actions["starts-server"] == "keep")

    def _start(self, arguments: list[str], *, keep: bool) -> None:
        if keep:
            self.close()
        with contextlib.ExitStack() as stack, contextlib.chdir(self.directory):
            server = stack.enter_context(serve(*arguments))
            if keep:
                self._server = server
                self._keeping.push(stack.pop_all())

    def _run_console(self, block: Block, code: str) -> None:
        commands = console_commands(code)
        between = f"\nprintf '{BETWEEN}'\n"
        printed = self._shell("set +e\n" + between.join(command for command, _ in commands))
        for (command, expected), output in zip(commands, printed.split(BETWEEN), strict=True):
            self._compare(expected, output, command)

    def _run_text(self, block: Block, code: str) -> None:
        if "output" in block.actions:
            self._compare(code, self.output, "the block before")

    def _run_python(self, block: Block, code: str) -> None:
        before = self.python if "continues" in block.actions else ""
        self.python = f"{before}\nprint({BETWEEN!r}, end='')\n{code}"
        script = self.aside / "snippet.py"
        script.write_text(self.python, encoding="utf-8")
        self.output = self._call(sys.executable, str(script)).rpartition(BETWEEN)[2]

    def _run_js(self, block: Block, code: str) -> None:
        script = self.aside / "snippet.mjs"
        script.write_text(code, encoding="utf-8")
        if "document." in code or "EventSource" in code:
            chromium = find_chromium()
            if chromium is None:
                _missing(MISSING, "PENSTOCK_REQUIRE_BROWSER")
            browser = str(HERE / "browser.py")
            self._call(sys.executable, browser, str(chromium), self._url(block), str(script))
        else:
            node = shutil.which("node")
            if node is None:
                _missing(NEEDS_NODE, "CI")
            self._call(str(node), str(script))

    def _run_toml(self, block: Block, code: str) -> None:
        tomllib.loads(code)
        path = self.aside / "snippet.toml"
        if "keys" in block.actions:
            path.write_text(code.replace("sha256:...", hash_of(new_key())), encoding="utf-8")
            read_keys(path)
        elif block.actions.get("file", "penstock.toml") == "penstock.toml":
            path.write_text(code, encoding="utf-8")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PENSTOCK_CONFIG", str(path))
                _ = load_settings().engine_params

    def _run_json(self, block: Block, code: str) -> None:
        json.loads(code)

    def _compare(self, expected: str, printed: str, of: str) -> None:
        if not matches(expected, printed):
            raise SnippetError(f"the page shows another output of {of}; really it is:\n{printed}")

    def _shell(self, code: str, **environment: str) -> str:
        script = self.aside / "snippet.sh"
        script.write_text(code, encoding="utf-8")
        return self._call("bash", "-e", "-o", "pipefail", str(script), **environment)

    def _call(self, *command: str, **environment: str) -> str:
        """Run a command in the page's directory, and return its standard output."""
        bin_dir = str(Path(sys.executable).parent)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        python_path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
        path = os.pathsep.join((bin_dir, kept["PATH"]))
        process = subprocess.Popen(
            command,
            cwd=self.directory,
            env=kept
            | {"PYTHONPATH": python_path, "PATH": path, "CURL_HOME": str(self.aside)}
            | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self.output, errors = process.communicate(timeout=BLOCK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise SnippetError(f"still running after {BLOCK_TIMEOUT_S} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self.placeholders.learn(errors)
        self.placeholders.learn(self.output)
        if process.returncode:
            raise SnippetError(f"exit code {process.returncode}:\n{self.output}{errors}")
        return self.output


def _furnish(directory: Path) -> None:
    """Put into a page's directory what its commands expect: the clone, a model, a certificate."""
    for name in ("deploy", "benchmarks", "docs", "tests", "training", "Makefile"):
        (directory / name).symlink_to(ROOT / name)
    (directory / "model.gguf").symlink_to(Path(penstock.__file__).parent / "model" / "rill.gguf")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(directory / "authority.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    for i, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(directory / "cert.pem", append=i > 0)


def _missing(message: str, variable: str) -> None:
    """Skip the page, or fail it where CI promises that the program is installed."""
    if os.environ.get(variable) in ("1", "true"):
        pytest.fail(message)
    pytest.skip(message)


def _record(record: Path, directory: str, arguments: list[str]) -> None:
    """Check the arguments of a `penstock serve` with the real parser, and write them down."""
    from typer.main import get_command

    from penstock.cli.main import app

    os.chdir(directory)
    for i, argument in enumerate(arguments):
        if argument.startswith("ARGS="):  # of make
            arguments[i : i + 1] = shlex.split(argument.removeprefix("ARGS="))
    command = get_command(app).commands["serve"]  # type: ignore[attr-defined] # a group
    given = command.make_context("serve", list(arguments)).params
    settings = load_settings(**{k: v for k, v in given.items() if v not in (None, [], ())})
    _ = settings.engine_params
    # A server of the tests takes flags only, so the variables of the block become flags.
    for name in type(settings).model_fields:
        value = os.environ.get(f"PENSTOCK_{name.upper()}")
        if value and not given.get(name):
            flag = f"--{name.replace('_', '-')}"
            arguments += [flag] if value == "true" else [flag, value]
    if "--port" in arguments:
        at = arguments.index("--port")
        del arguments[at : at + 2]
    with record.open("a") as file:
        file.write(json.dumps(arguments) + "\n")


if __name__ == "__main__":
    try:
        _record(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except StartError as error:
        sys.exit(f"{error} {error.hint}")
