"""The agents of the test: their packages, how each runs one task, and the API that each speaks."""

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.agents.task import REQUEST
from tests.support.environments import cache_folder
from tests.support.npm import MISSING

INSTALL_TIMEOUT_S = 600


@dataclass(frozen=True)
class Agent:
    """An agent as `penstock launch` runs it."""

    name: str
    package: str
    version: str
    path: str
    """The address to which it sends its turns."""
    arguments: tuple[str, ...]
    """What has it do the task without asking the user."""
    variables: dict[str, str] = field(default_factory=dict)
    """What has it ask no other server: for updates, models or statistics."""
    asks: frozenset[str] = frozenset()
    """The other hosts that it asks all the same."""


_QUIET = (
    *("-c", "analytics.enabled=false", "-c", "check_for_update_on_startup=false"),
    *("-c", "features.plugins=false", "-c", "features.apps=false"),
)
"""What has Codex ask no other server."""

AGENTS = {
    agent.name: agent
    for agent in (
        Agent(
            "claude",
            "@anthropic-ai/claude-code",
            "2.1.197",
            "/v1/messages",
            ("-p", "--allowedTools", "Bash", "--", REQUEST),
            {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"},
        ),
        Agent(
            "codex",
            "@openai/codex",
            "0.171.0",
            "/v1/responses",
            # Codex's own sandbox needs rights that containers often lack.
            ("exec", *_QUIET, "--skip-git-repo-check", "--sandbox", "danger-full-access", REQUEST),
        ),
        Agent(
            "opencode",
            "opencode-ai",
            "1.18.33",
            "/v1/chat/completions",
            ("run", REQUEST),
            {"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
            # It installs a package for plugins, which no option turns off.
            frozenset({"registry.npmjs.org"}),
        ),
    )
}


def installed() -> Path:
    """Return the folder with the agents' commands, in these versions. npm installs them once."""
    packages = [f"{agent.package}@{agent.version}" for agent in AGENTS.values()]
    digest = hashlib.sha256(json.dumps(packages).encode()).hexdigest()[:12]
    folder = cache_folder() / f"agents-{digest}"
    with (cache_folder() / "agents.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            npm = shutil.which("npm")
            if npm is None:
                sys.exit(MISSING)
            shutil.rmtree(folder, ignore_errors=True)
            command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder)]
            subprocess.run([*command, *packages], check=True, timeout=INSTALL_TIMEOUT_S)
            (folder / "complete").touch()
    return folder / "node_modules" / ".bin"
