"""The command line: parse, call one function, print.

`serve` has a flag for every setting (see `settings`), made from that one model; `generate` and
`chat` stand in `terminal`, `bench` in `bench.command`.
"""

import importlib.metadata
import inspect
import logging
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from setproctitle import setproctitle

from penstock import __version__
from penstock.cli.bench import commands as bench_commands
from penstock.cli.chat import commands
from penstock.cli.loading import LoadingDisplay
from penstock.engine.catalog import DEFAULT_ENGINE, ENGINES
from penstock.engine.protocol import ModelInfo
from penstock.errors import StartError
from penstock.observe.logs import logging_to, unbuffered
from penstock.settings import Settings, load_settings

app = typer.Typer(
    name="penstock",
    help="The streaming server for language models: every token as it is made.\n\n"
    "Begin with [bold]penstock serve[/bold], then open http://127.0.0.1:8000.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(stderr=True, highlight=False)
log = logging.getLogger(__name__)


def _version(wanted: bool) -> None:
    if wanted:
        engine = ENGINES[DEFAULT_ENGINE].distribution
        engine += f" {importlib.metadata.version(engine)}"
        print(f"penstock {__version__} ({engine}, Python {sys.version.split()[0]})")  # noqa: T201 - the answer, on standard output
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


def _serve(**flags: Any) -> None:
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    setproctitle("penstock: server")
    try:
        settings = load_settings(**given)
    except StartError as error:
        fail(error)
    with logging_to(unbuffered(sys.stderr.fileno()), settings.log_format):
        try:
            _run_server(settings)
        except StartError as error:
            if settings.log_format == "text":
                fail(error)
            log.critical("%s", error, extra={"fields": {"hint": error.hint}})
            raise typer.Exit(1) from None


def _run_server(settings: Settings) -> None:
    from penstock.server import Server, run, with_local_model

    settings = with_local_model(settings)
    loading = LoadingDisplay(console, settings)

    def announce(server: Server, info: ModelInfo) -> None:
        loading.stop()
        if settings.log_format == "json":
            served = {"version": __version__, "model": info.id, "url": server.url}
            log.info("serving", extra={"fields": served})
            return
        num_slots = settings.slots or info.slots
        slots = f"{num_slots} slots" if num_slots else "no bound on slots"
        console.print(
            f"[bold]Penstock {__version__}[/bold] serves [bold]{escape(info.id)}[/bold]"
            f" ({info.engine}, {slots}, {info.context_length:,} tokens of context)\n"
            f"  page and API  [bold cyan]{server.url}[/bold cyan]\n"
            f"  try           curl -N {server.url}/generate -H 'Content-Type: application/json'"
            """ -d '{"prompt": "Once upon a time"}'\n"""
            "  stop          Ctrl-C",
            soft_wrap=True,
        )

    def make() -> Server:
        return Server(settings, on_ready=announce, on_loading=loading.watch)

    with loading:
        run(make)


def fail(error: StartError) -> NoReturn:
    """Say why and what to do, and exit with 1."""
    console.print(f"[bold red]Error:[/bold red] {escape(str(error))}", soft_wrap=True)
    if error.hint:
        console.print(f"  {escape(error.hint)}", soft_wrap=True)
    raise typer.Exit(1)


def _signature() -> inspect.Signature:
    """A keyword argument for each setting; None means that the flag was not given."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if field.exclude:
            continue
        default = field.get_default(call_default_factory=True)
        many = isinstance(default, list)
        plain = type(default)
        shown = "" if default in ("", []) else f" [dim]\\[default: {default}][/dim]"
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=" ".join((field.description or "").split()).replace("[", r"\[") + shown,
            show_default=False,
            metavar="NAME=VALUE" if name == "engine_arg" else None,
        )
        annotation: Any = list[str] if many else plain | None
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=[] if many else None,
                annotation=Annotated[annotation, option],
            )
        )
    return inspect.Signature(parameters)


_serve.__signature__ = _signature()  # type: ignore[attr-defined] # what typer reads
_serve.__annotations__ = {name: p.annotation for name, p in _signature().parameters.items()}
app.command(
    "serve",
    help="Serve a model: the page, the API, at http://127.0.0.1:8000.\n\n"
    "[bold]penstock serve[/bold]  the built-in model\n\n"
    "[bold]penstock serve --model ./qwen.gguf --slots 4[/bold]  any GGUF file\n\n"
    "[bold]penstock serve --model unsloth/Qwen3-0.6B-GGUF:Q4_K_M[/bold]  one from the hub\n\n"
    "[bold]penstock serve --engine mock --mock-interval 0.05[/bold]  a fixed text, for"
    " developing clients\n\n"
    "Each flag may also be a variable (PENSTOCK_PORT=9000) or a line of penstock.toml.",
)(_serve)
app.add_typer(commands)
app.add_typer(bench_commands)


@app.command("key")
def _key(
    name: Annotated[str, typer.Argument(help="Who will have the key.")] = "me",
    admin: Annotated[
        bool, typer.Option("--admin", help="May read /metrics, and read and end others' streams.")
    ] = False,
) -> None:
    """Make a key: prints it, once, and what a file of keys has of it.

    The file, named by [bold]--keys[/bold], holds a table for each key. It may limit what the key
    may have: max_streams, max_resumable, max_retained_bytes, tokens_per_minute. After a change send
    the server SIGHUP.
    """
    from penstock.web.auth import is_name, key_table, new_key

    if not is_name(name):
        fail(StartError("A name has letters, digits, '.', '_', '-', 64 at most."))
    key = new_key()
    console.print(
        f"The key of {name}. It is shown this once, and kept nowhere: the file has its hash.\n"
        f"  [bold]{key}[/bold]\nFor the file of keys:",
        soft_wrap=True,
    )
    print(key_table(name, key, is_admin=admin))  # noqa: T201 - what a file takes, on standard output


def main() -> None:
    """`penstock` and `python -m penstock`."""
    app()
