"""The programs that `penstock launch` runs: how each finds a server without a file of its own.

In: the address of a server, the name and the context of its model. Out: variables and arguments for
one run of the program. This module starts nothing, and never sees a key: it names the variables
that contain the key.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

KEY_VARIABLE = "PENSTOCK_API_KEY"


@dataclass(frozen=True)
class Served:
    """The server as a program needs to know it."""

    url: str
    """The address, without /v1 and without a slash at the end."""
    model: str
    """The name of the model in requests."""
    context_length: int
    """Tokens that a prompt and its answer may have together."""
    needs_key: bool
    """True if the user has a key for the server."""


@dataclass(frozen=True)
class Setup:
    """What points one run of a program at the server."""

    variables: dict[str, str] = field(default_factory=dict)
    """The variables to set, without secrets."""
    key_variables: tuple[str, ...] = ()
    """The variables to set to the key."""
    unset: tuple[str, ...] = ()
    """The variables to leave out: they would lead the program, or another key, elsewhere."""
    arguments: tuple[str, ...] = ()
    """The arguments that precede the user's own."""


@dataclass(frozen=True)
class Program:
    """A program that can use a Penstock server."""

    command: str
    """The name of its executable."""
    about: str
    """The program in a few words."""
    install: str
    """The command that installs it."""
    set_up: Callable[[Served], Setup]


def _claude(served: Served) -> Setup:
    """Claude Code speaks the Messages API. Small tasks and subagents have models of their own."""
    models = ["ANTHROPIC_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL"]
    models += [f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("HAIKU", "SONNET", "OPUS")]
    # Without a token, Claude Code asks the user to log in.
    token = {} if served.needs_key else {"ANTHROPIC_AUTH_TOKEN": "none"}
    variables = {"ANTHROPIC_BASE_URL": served.url, **token, **dict.fromkeys(models, served.model)}
    return Setup(
        variables=variables,
        # The user's settings file overrides variables, and would lead the key elsewhere.
        arguments=("--settings", json.dumps({"env": variables})),
        key_variables=("ANTHROPIC_AUTH_TOKEN",) if served.needs_key else (),
        # The user's key for Anthropic's own server must not go to this one.
        unset=(
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_CUSTOM_HEADERS",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX",
            "CLAUDE_CODE_USE_FOUNDRY",
        ),
    )


def _codex(served: Served) -> Setup:
    """Codex speaks the Responses API. Each `-c` is an entry of its configuration, in TOML."""
    provider = "model_providers.penstock"
    entries: dict[str, str | int] = {
        "model": served.model,
        "model_provider": "penstock",
        "model_context_window": served.context_length,
        f"{provider}.name": "Penstock",
        f"{provider}.base_url": f"{served.url}/v1",
        f"{provider}.wire_api": "responses",
    }
    if served.needs_key:
        entries[f"{provider}.env_key"] = KEY_VARIABLE
    arguments: list[str] = []
    for name, value in entries.items():
        arguments += ["-c", f"{name}={json.dumps(value, ensure_ascii=False)}"]
    key_variables = (KEY_VARIABLE,) if served.needs_key else ()
    return Setup(key_variables=key_variables, arguments=tuple(arguments))


def _opencode(served: Served) -> Setup:
    """Opencode speaks OpenAI's chats. It merges this configuration over the user's own files."""
    options = {"baseURL": f"{served.url}/v1"}
    if served.needs_key:
        options["apiKey"] = f"{{env:{KEY_VARIABLE}}}"
    limit = {"context": served.context_length, "output": served.context_length // 4}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Penstock",
        "options": options,
        "models": {served.model: {"name": served.model, "limit": limit}},
    }
    model = f"penstock/{served.model}"
    content = {"provider": {"penstock": provider}, "model": model, "small_model": model}
    return Setup(
        variables={"OPENCODE_CONFIG_CONTENT": json.dumps(content)},
        key_variables=(KEY_VARIABLE,) if served.needs_key else (),
    )


PROGRAMS = {
    program.command: program
    for program in (
        Program("claude", "Claude Code", "npm install -g @anthropic-ai/claude-code", _claude),
        Program("codex", "OpenAI's Codex", "npm install -g @openai/codex", _codex),
        Program("opencode", "opencode", "npm install -g opencode-ai", _opencode),
    )
}
