"""The command line: the application, and `penstock serve`.

In: arguments. Out: a running server, or another command (`chat`, `launch`, `key` and `bench` in
this folder). `serve` has a flag for every setting; the flags are generated from the model in
`settings`.
"""

import importlib.metadata
import inspect
import logging
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from setproctitle import setproctitle

from penstock import __version__
from penstock.cli import bench, chat, key, launch
from penstock.cli.loading import LoadingDisplay
from penstock.cli.screen import console, fail
from penstock.cli.standard_files import open_standard_files, stderr_to
from penstock.cli.waiting import waiting_report
from penstock.engine.catalog import DEFAULT_ENGINE, ENGINES
from penstock.engine.protocol import ModelInfo
from penstock.errors import StartError
from penstock.observe.logs import logging_to, unbuffered
from penstock.service import Service
from penstock.settings import Settings, load_settings

app = typer.Typer(
    name="penstock",
    help="Serve a language model, and stream each token as the model generates it.\n\n"
    "[bold]penstock serve[/bold]  serve the built-in model; then open http://127.0.0.1:8000\n\n"
    '[bold]penstock generate "Once upon a time"[/bold]  continue a text in the terminal\n\n'
    "[bold]penstock launch claude[/bold]  run an agent with your server as its model\n\n"
    "[bold]penstock COMMAND --help[/bold]  explain a command, with examples",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)
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
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def _serve(**flags: Any) -> None:
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    setproctitle("penstock: server")
    try:
        settings = load_settings(**given)
    except StartError as error:
        fail(str(error), error.hint)
    to_stderr = logging_to(unbuffered(sys.stderr.fileno()), settings.log_format)
    # All output of the server is written as its log is, so a full pipe or disk cannot stop it.
    with to_stderr as writer, stderr_to(writer.write_text):
        try:
            _run_server(settings)
        except StartError as error:
            if settings.log_format == "text":
                fail(str(error), error.hint)
            log.critical("%s", error, extra={"fields": {"hint": error.hint}})
            raise typer.Exit(1) from None


def _run_server(settings: Settings) -> None:
    from penstock.server import Server, run, with_local_model

    settings = with_local_model(settings)
    loading = LoadingDisplay(console, settings)
    report_waiting = waiting_report(console, settings.log_format)
    service = Service()

    def announce(url: str, info: ModelInfo) -> None:
        loading.stop()
        _announce(settings, url, info)
        service.ready(f"serves {info.id} at {url}")

    def tell_waiting(number: int) -> None:
        report_waiting(number)
        service.tell(f"stops; streams left: {number:,}")

    def make() -> Server:
        return Server(
            settings,
            on_ready=lambda server, info: announce(server.url, info),
            on_loading=loading.watch,
            on_waiting=tell_waiting,
        )

    with loading:
        if settings.processes == 1:
            run(make, service)
            return
        from penstock.processes.supervisor import Supervisor

        setproctitle("penstock: supervisor")
        run(
            lambda: Supervisor(
                settings, on_ready=announce, on_loading=loading.watch, on_waiting=tell_waiting
            ),
            service,
        )


def _announce(settings: Settings, url: str, info: ModelInfo) -> None:
    """Say on standard error that the server is ready, and what it serves."""
    number = settings.processes
    if settings.log_format == "json":
        served = {"version": __version__, "model": info.id, "url": url}
        more = {"processes": number} if number > 1 else {}
        log.info("serving", extra={"fields": served | more})
        return
    pace = f"  pace          {settings.pace:g} tokens/s, so that you see them stream; "
    pace += "turn it off with --pace 0\n"
    stage = '  stage         "Break it" on the page cuts, kills and freezes: see what survives\n'
    key = " -H 'Authorization: Bearer KEY'" if settings.api_key or settings.keys else ""
    num_slots = settings.slots or info.slots
    slots = f"{num_slots} slots" if num_slots else "unlimited slots"
    if number > 1:
        slots = f"{number} processes with {slots} each"
    console.print(
        f"[bold]Penstock {__version__}[/bold] serves [bold]{escape(info.id)}[/bold]"
        f" ({info.engine}, {slots}, {info.context_length:,} tokens of context)\n"
        f"  page and API  [bold cyan]{url}[/bold cyan]\n"
        f"  try           curl -N {url}/generate{key} -H 'Content-Type: application/json'"
        """ -d '{"prompt": "Once upon a time"}'\n"""
        + (pace if settings.pace else "")
        + (stage if settings.demo else "")
        + "  stop          Ctrl-C",
        soft_wrap=True,
    )


def _signature() -> inspect.Signature:
    """Return a keyword parameter for each setting; None means that the flag was not given."""
    parameters = []
    for name, field in Settings.model_fields.items():
        if field.exclude:
            continue
        default = field.get_default(call_default_factory=True)
        many = isinstance(default, list)
        plain = type(default)
        description = " ".join((field.description or "").split())
        is_told = default in ("", []) or "[default: " in description
        shown = "" if is_told else f" [dim]\\[default: {default}][/dim]"
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=description.replace("[", r"\[") + shown,
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


_serve.__signature__ = _signature()  # type: ignore[attr-defined] # for Typer
_serve.__annotations__ = {name: p.annotation for name, p in _signature().parameters.items()}
app.command(
    "serve",
    help="Serve a model: an HTTP API and a web page at http://127.0.0.1:8000.\n\n"
    "[bold]penstock serve[/bold]  the built-in model\n\n"
    "[bold]penstock serve --model ./qwen.gguf --slots 4[/bold]  a GGUF file, 4 requests at once\n\n"
    "[bold]penstock serve --model unsloth/Qwen3-0.6B-GGUF:Q4_K_M[/bold]  a model from the Hugging"
    " Face hub\n\n"
    "[bold]penstock serve --engine mock --mock-interval 0.05[/bold]  a fixed text every time, for"
    " developing clients\n\n"
    "You can also set each flag as a variable (PENSTOCK_PORT=9000) or in penstock.toml (port ="
    " 9000). A flag overrides a variable, and a variable overrides the file. Ctrl-C stops the"
    " server.",
)(_serve)
for commands in (chat.commands, launch.commands, key.commands, bench.commands):
    app.add_typer(commands)  # those without a name: they are merged


def main() -> None:
    """Run the command line."""
    open_standard_files()
    app()
