"""`penstock launch`: run an agent with a Penstock server as its model.

In: the name of a program, its arguments, and the URL of a running server. Out: the program itself,
which takes the place of this process. The settings that point it at the server hold for this run
only: no file changes. `programs` knows what each program needs.
"""

import os
import shlex
import shutil
import signal
from typing import Annotated, NoReturn

import httpx
import msgspec
import typer
from rich.markup import escape

from penstock.cli.key import key_from_environment
from penstock.cli.programs import KEY_VARIABLE, PROGRAMS, Program, Served, Setup
from penstock.cli.screen import console, fail
from penstock.client import PenstockError
from penstock.client.answer import decode_json
from penstock.client.http import DEFAULT_URL, connection_options, translated_errors

MIN_CONTEXT = 32_768
"""Tokens. Agents send 10,000 to 40,000 tokens with their first request."""
ANSWER_TIMEOUT_S = 10.0

commands = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


class _Model(msgspec.Struct):
    """A model in the list; the name may become an argument of a program."""

    id: Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]{1,256}$")]
    context_length: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Models(msgspec.Struct):
    data: Annotated[list[_Model], msgspec.Meta(min_length=1)]


@commands.command(
    "launch",
    help="Run an agent with your own server as its model.\n\n"
    "[bold]penstock launch[/bold]  list the programs\n\n"
    "[bold]penstock launch claude[/bold]  run Claude Code with the server at"
    " http://127.0.0.1:8000\n\n"
    '[bold]penstock launch --url http://10.0.0.5:8000 codex exec "Say hello"[/bold]  use another'
    " server; the words after the program's name are the program's own\n\n"
    "The command sets variables or arguments for this run only and changes no file. If the server"
    " needs a key, put it into PENSTOCK_API_KEY.",
    # Everything from the program's name on belongs to the program.
    context_settings={"allow_interspersed_args": False},
)
def _launch(
    program: Annotated[
        str | None, typer.Argument(metavar="PROGRAM", help=f"{', '.join(PROGRAMS)}.")
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGUMENT", help="The program's own arguments."),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", envvar="PENSTOCK_URL", metavar="URL", help="The server's URL.")
    ] = DEFAULT_URL,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help=f"Run the program with a context of less than {MIN_CONTEXT:,} tokens."
        ),
    ] = False,
    only_print: Annotated[
        bool,
        typer.Option("--print", help="Print what would be set as shell commands, and run nothing."),
    ] = False,
) -> None:
    if program is None:
        _list()
        return
    chosen = PROGRAMS.get(program)
    if chosen is None:
        fail("Penstock cannot launch that program.", f"Choose one of: {', '.join(PROGRAMS)}.")
    path = shutil.which(chosen.command)
    if path is None and not only_print:
        fail(f"{chosen.command} is not installed.", f"Install it: {chosen.install}")
    key = key_from_environment()
    served = _find(url, key)
    if served.context_length < MIN_CONTEXT and not force:
        _refuse_context(served)
    setup = chosen.set_up(served)
    own = arguments or []
    if path is None or only_print:
        _print(chosen, setup, own)
    else:
        _announce(chosen, setup, served)
        _run(path, [chosen.command, *setup.arguments, *own], _environment(setup, key))


def _list() -> None:
    for program in PROGRAMS.values():
        state = "installed" if shutil.which(program.command) else f"install: {program.install}"
        print(f"{program.command:<10} {program.about:<16} {state}")  # noqa: T201 - the answer


def _find(url: str, key: str | None) -> Served:
    """Ask the server for its model. Exits with a sentence if no server answers as it should."""
    try:
        options = connection_options(url, key, ANSWER_TIMEOUT_S)
        with httpx.Client(**options) as client, translated_errors(client):
            response = client.get("/v1/models")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            fail("The server needs a key that it knows.", f"Put your key into {KEY_VARIABLE}.")
        if response.status_code != httpx.codes.OK:
            fail(f"The server answered {response.status_code} to GET /v1/models.")
        kind = response.headers.get("content-type", "")
        (model, *_) = decode_json(kind, response.content, _Models).data
    except (PenstockError, ValueError) as error:
        fail(str(error))
    if model.context_length is None:
        fail("The server is still loading its model.", "Run the command again when it is ready.")
    return Served(url.rstrip("/"), model.id, model.context_length, needs_key=key is not None)


def _refuse_context(served: Served) -> NoReturn:
    fail(
        f"The context of {served.model} has {served.context_length:,} tokens, and agents send"
        " 10,000 to 40,000 tokens with their first request.",
        f"Serve a model with more: penstock serve --model MODEL --context {MIN_CONTEXT}"
        " (or run the program anyway with --force).",
    )


def _announce(program: Program, setup: Setup, served: Served) -> None:
    """Say on standard error what the program will use, and what is set for it."""
    names = [*setup.variables, *(f"{name} (your key)" for name in setup.key_variables)]
    parts = [", ".join(names)] if names else []
    if setup.arguments:
        parts.append(shlex.join(setup.arguments))
    console.print(
        f"{program.about} uses [bold]{escape(served.model)}[/bold] at {escape(served.url)}"
        f" ({served.context_length:,} tokens of context).\n"
        f"Set for this run only: {escape('; '.join(parts))}",
        soft_wrap=True,
    )


def _print(program: Program, setup: Setup, own: list[str]) -> None:
    """Print shell commands that do the same. The key appears only as the name of its variable."""
    lines = [f"unset {name}" for name in setup.unset]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in setup.variables.items()]
    # If the variable has several keys, the program gets the first one.
    lines += [f'export {name}="${{{KEY_VARIABLE}%%,*}}"' for name in setup.key_variables]
    lines.append(shlex.join([program.command, *setup.arguments, *own]))
    print("\n".join(lines))  # noqa: T201 - the answer, on standard output


def _environment(setup: Setup, key: str | None) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in setup.unset}
    return ours | setup.variables | dict.fromkeys(setup.key_variables, key or "")


def _run(path: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Become the program, so that its signals and its exit status are its own."""
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and a program inherits that
        signal.signal(ignored, signal.SIG_DFL)
    os.execve(path, arguments, environment)  # noqa: S606 - no shell reads the arguments
