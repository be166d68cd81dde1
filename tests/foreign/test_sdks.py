"""SDKs as their users use them: real programs, over real sockets, against two real servers.

Each program runs in an environment of its own and reports what its user gets (see `sdks/asked`).
One server tells conversations back, so every SDK must report the same; the other has a real model.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from tests.faults.proxy import proxy_in_a_thread
from tests.foreign.cutting import cut_marked
from tests.foreign.engine import HOLD
from tests.support.dying import MortalServer, mortal
from tests.support.keyed import Keys
from tests.support.npm import npm_packages
from tests.support.openai_wire import CHAT
from tests.support.raw import Connection, post
from tests.support.scraped import Scrape
from tests.support.servers import RunningServer, serve
from tests.support.templates import TOOLS

# The first time, packages are installed.
pytestmark = pytest.mark.timeout(600)

PATIENCE_S = 300
UV = find_uv_bin()
SDKS = Path(__file__).parent / "sdks"
NPM = Path(__file__).parent / "npm"
ROOT = SDKS.parent.parent.parent
# No program calls home.
SILENT = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OTEL_SDK_DISABLED": "true",
    "UV_PYTHON_DOWNLOADS": "never",
}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Who are you?"},
]
WEATHER = "I was told: user What is the weather in Bonn? / assistant / tool 21 degrees in Bonn"
TOLD = "I was told: system Be brief. / user Hi there / assistant Hello! / user Who are you?"
TOKENS = [8, 18]
"""Those of the prompt and of the answer: words."""
# The best two tokens are never nearly equal: the answer goes on after a death as it would without.
STORY = [{"role": "user", "content": "What is Penstock?"}]


@dataclass(frozen=True)
class Sdk:
    """An SDK: its script, the APIs that it speaks, and the names of its exceptions.

    `errors` are its exceptions for 401, 400 and 429; `cut` is that for a stream that is cut. A
    result that differs from other SDKs' is in `differs`, by task, or by API and task.
    The SDK's retries do not heed `Retry-After` over the `impatient` APIs.
    """

    script: str
    apis: tuple[str, ...]
    errors: tuple[str, str, str]
    cut: str
    differs: Mapping[str, Any] = field(default_factory=dict)
    impatient: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.script

    def expected(self, api: str, story: str) -> dict[str, Any]:
        """Return what the program must report for an API, but for `joined`."""
        same = {
            "whole": {"text": TOLD, "usage": TOKENS},
            "streamed": {"text": TOLD, "is_streamed": True},
            "tool": WEATHER,
            "structured": True,
            "refused": named(*self.errors),
            "retried": {"text": TOLD, "waited": True},
            "cut": {"raised": self.cut},
            "killed": story,
        }
        differs = self.differs
        return {
            task: differs.get(f"{api} {task}", differs.get(task, result))
            for task, result in same.items()
        }


def named(*errors: str) -> dict[str, str]:
    """Return an SDK's exceptions by the statuses that they stand for."""
    return dict(zip(("401", "400", "429"), errors, strict=True))


class Servers:
    """Both servers, the proxy before the first of them, and the keys."""

    def __init__(self, telling: RunningServer, real: MortalServer, cut_url: str, keys: Keys):
        self.telling, self.real, self.cut_url, self.keys = telling, real, cut_url, keys
        said = json.dumps({"messages": STORY, "temperature": 0}).encode()
        answer = json.loads(real.undisturbed(post(said, path=CHAT)).body)
        self.story = answer["choices"][0]["message"]["content"]

    def task(self) -> str:
        """Return what a program needs to know, as JSON."""
        return json.dumps(
            {
                "url": self.telling.url,
                "cut_url": self.cut_url,
                "model_url": self.real.running.url,
                "die": str(self.real.file),
                "keys": self.keys.keys,
                "turns": TURNS,
                "story": STORY,
            }
        )

    def num_tokens(self, key: str) -> float:
        """Return the number of tokens that were generated for this key."""
        admin = self.keys.header("admin")
        return Scrape(self.telling, admin)("penstock_key_completion_tokens_total", key=key)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("sdks")
    keys = Keys(folder / "keys.toml", "user", "full", "busy", "once", "admin")
    keys.fields = {"full": {"max_streams": 1}, "busy": {"max_streams": 1}}
    keys.write()
    engine = "tests.foreign.engine:Telling"
    with (
        serve(engine=engine, keys=keys.path) as telling,
        mortal(folder, f"chat_template={TOOLS}", model_name="rill") as real,
        proxy_in_a_thread(telling.address, cut_marked()) as proxy,
    ):
        body = json.dumps({"messages": [{"role": "user", "content": HOLD}], "stream": True})
        data = post(body.encode(), keys.header("full"), path=CHAT)
        with Connection(telling.port).send(data) as held:
            assert held.head().status == 200
            yield Servers(telling, real, f"http://127.0.0.1:{proxy.address[1]}", keys)


OPENAI = "AuthenticationError", "BadRequestError", "RateLimitError"
LITELLM = "AuthenticationError", "ContextWindowExceededError", "RateLimitError"
LANGCHAIN = "OpenAIAuthenticationError", "OpenAIInvalidRequestError", "OpenAIRateLimitError"
PYDANTIC_AI = "ModelAuthenticationError", "ModelContextWindowExceededError", "ModelRateLimitError"
NO_RETRIES = {"cannot": "the client never retries"}
ONLY_OBJECTS = {"cannot": "instructor returns objects only"}

IN_PYTHON = [
    Sdk("openai_sdk", ("chat", "responses"), OPENAI, "APIConnectionError"),
    Sdk("anthropic_sdk", ("messages",), OPENAI, "RemoteProtocolError"),
    Sdk(
        "ollama_sdk",
        ("chat",),
        ("ResponseError",) * 3,
        "RemoteProtocolError",
        {"retried": NO_RETRIES, "joined": NO_RETRIES},
    ),
    Sdk(
        "litellm_sdk",
        ("openai", "hosted_vllm", "anthropic", "ollama_chat"),
        LITELLM,
        "MidStreamFallbackError",
        # It looks for the length of the prompt only in errors of OpenAI's form.
        {"ollama_chat refused": named(*OPENAI)},
        impatient=("hosted_vllm", "anthropic", "ollama_chat"),
    ),
    Sdk("langchain_sdk", ("chat", "responses"), LANGCHAIN, "OpenAIConnectionError"),
    Sdk(
        "pydantic_ai_sdk",
        ("chat", "responses", "messages"),
        PYDANTIC_AI,
        "ModelConnectionError",
    ),
    Sdk("openai_agents_sdk", ("responses", "chat"), OPENAI, "APIConnectionError"),
    Sdk(
        "instructor_sdk",
        ("tools", "json_schema"),
        OPENAI,
        "APIConnectionError",
        dict.fromkeys(
            ("whole", "streamed", "tool", "refused", "retried", "joined", "cut", "killed"),
            ONLY_OBJECTS,
        ),
    ),
    Sdk("autogen_sdk", ("chat",), OPENAI, "APIConnectionError"),
]
IN_JAVASCRIPT = [
    Sdk(
        "vercel",
        ("responses", "chat", "compatible", "messages"),
        ("APICallError",) * 3,
        "APICallError",
    ),
    Sdk(
        "langchain",
        ("chat", "responses"),
        ("AuthenticationError", "ContextOverflowError", "RateLimitError"),
        "TypeError",
    ),
]


@pytest.mark.parametrize("sdk", IN_PYTHON, ids=str)
def test_an_sdk_in_python_gives_its_user_what_the_server_says(servers: Servers, sdk: Sdk) -> None:
    script = SDKS / f"{sdk.script}.py"
    of_script = ["--quiet", "--python", sys.executable, "--script", str(script)]
    install([UV, "sync", *of_script], "PENSTOCK_REQUIRE_FOREIGN")
    check(servers, sdk, [UV, "run", "--offline", *of_script])


@pytest.mark.parametrize("sdk", IN_JAVASCRIPT, ids=str)
def test_an_sdk_in_javascript_gives_its_user_what_the_server_says(
    servers: Servers, sdk: Sdk, tmp_path: Path
) -> None:
    check(servers, sdk, ["node", str(beside_packages(tmp_path) / f"{sdk.script}.mjs")])


def test_eventsource_parser_reads_and_resumes_a_stream(servers: Servers, tmp_path: Path) -> None:
    """The program resumes with the last id that the parser saw, after the proxy's cut."""
    script = beside_packages(tmp_path) / "eventsource_parser.mjs"
    reported = run(servers, ["node", str(script)])
    assert reported["num_requests"] == 2
    assert re.fullmatch(r"I was told: user cut-stream-\w{32}( word){40}", reported["text"])


def beside_packages(folder: Path) -> Path:
    """Copy the programs to a folder that has their packages, and return it."""
    (folder / "node_modules").symlink_to(npm_packages(NPM))
    for program in NPM.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


def install(command: list[str], required_by: str) -> None:
    """Run a command that installs packages. If it fails the test skips, unless CI requires it."""
    options: Any = {"capture_output": True, "text": True, "env": environment(), "check": False}
    if not subprocess.run([*command, "--offline"], **options).returncode:
        return  # they are here, and nobody needs to ask for newer ones
    done = subprocess.run(command, **options)
    if done.returncode:
        reason = f"the packages cannot be installed: {done.stderr[-500:]}"
        if os.environ.get(required_by) == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a program."""
    return {**os.environ, **SILENT, **more}


def run(servers: Servers, command: list[str]) -> Any:
    """Run a program and return its report."""
    done = subprocess.run(
        command,
        env=environment(PYTHONPATH=str(ROOT), SDK_TASK=servers.task()),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(servers: Servers, sdk: Sdk, command: list[str]) -> None:
    """Run a program and compare its report with what the servers say."""
    before = servers.num_tokens("once")
    reported = run(servers, command)
    joined = {api: results.pop("joined") for api, results in reported.items()}
    for api in sdk.impatient:
        assert reported[api]["retried"]["text"] == TOLD
        reported[api]["retried"]["waited"] = True  # on a busy machine it may seem so
    assert reported == {api: sdk.expected(api, servers.story) for api in sdk.apis}
    if "joined" in sdk.differs:
        assert set(map(str, joined.values())) == {str(sdk.differs["joined"])}
        return
    assert all(text.startswith("I was told: user cut-whole-") for text in joined.values()), joined
    num_tokens = sum(len(text.split()) for text in joined.values())
    assert servers.num_tokens("once") == before + num_tokens  # each was generated once
