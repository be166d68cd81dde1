"""The command `penstock bench`: parses the options, runs the benchmark and prints the report."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from penstock.bench import plot
from penstock.bench.plan import Api, Arrivals, Lengths, Load, Prompts, parse_field, parse_slo
from penstock.bench.report import clean, display, report, to_json
from penstock.bench.run import BenchError, BenchOptions, bench
from penstock.cli.key import key_from_environment
from penstock.cli.screen import fail

WIDTH_OF_A_FILE = 120
DEFAULT_REQUESTS = 100
DEFAULT_CONCURRENCY = 8
DEFAULT_PROMPT_TOKENS = "128"

commands = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)

LOAD, REQUESTS, SERVER, RESULTS = "Load", "Requests", "Server", "Results"


@commands.command(
    "bench",
    help="Measure any server that speaks OpenAI's API: Penstock, vLLM, llama.cpp...\n\n"
    "[bold]penstock bench http://127.0.0.1:8000[/bold]  8 clients, 100 requests\n\n"
    "[bold]penstock bench URL --concurrency 64 --duration 60[/bold]  closed loop: each client sends"
    " its next request when it has its answer\n\n"
    "[bold]penstock bench URL --rate 20 --duration 60[/bold]  open loop: 20 requests per second,"
    " however fast the server answers; latencies count from when a request was due\n\n"
    "[bold]penstock bench URL --rate 20 --slo ttft=500ms,itl=50ms[/bold]  goodput: how many"
    " requests stay within limits\n\n"
    "[bold]penstock bench URL --json run.json --plot run.html[/bold]  save the results\n\n"
    "Ctrl-C ends the run with the results so far. docs/benchmarking.md explains each figure.",
)
def _bench(
    url: Annotated[
        str, typer.Argument(help="The server's base URL. If it has no path, /v1 is added.")
    ],
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "-c",
            min=1,
            metavar="N",
            rich_help_panel=LOAD,
            help=f"Closed loop with N clients. [dim]\\[default: {DEFAULT_CONCURRENCY}][/dim]",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            "-r",
            metavar="R",
            rich_help_panel=LOAD,
            help="Open loop with R requests per second.",
        ),
    ] = None,
    arrivals: Annotated[
        Arrivals,
        typer.Option(
            "--arrivals",
            rich_help_panel=LOAD,
            help="Open loop: at random times (poisson) or at even intervals (constant).",
        ),
    ] = "poisson",
    requests: Annotated[
        int | None,
        typer.Option(
            "--requests",
            "-n",
            min=1,
            metavar="N",
            rich_help_panel=LOAD,
            help="End after N requests. [dim]\\[default: 100 without --duration][/dim]",
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            "-d",
            metavar="S",
            rich_help_panel=LOAD,
            help="Send no requests after S seconds, and wait for those in flight.",
        ),
    ] = None,
    warm_up: Annotated[
        int,
        typer.Option(
            "--warm-up",
            min=0,
            metavar="N",
            rich_help_panel=LOAD,
            help="Send N requests before the run. They do not count. 0 also skips calibrating"
            " --prompt-tokens to the server's tokens.",
        ),
    ] = 1,
    api: Annotated[
        Api, typer.Option("--api", rich_help_panel=REQUESTS, help="Chat or plain completions.")
    ] = "chat",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            rich_help_panel=REQUESTS,
            help="The model. [dim]\\[default: the first in /v1/models][/dim]",
        ),
    ] = None,
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            "--prompt-tokens",
            metavar="N|N-M",
            rich_help_panel=REQUESTS,
            help="Prompts of random words with about N tokens, or N to M."
            f" [dim]\\[default: {DEFAULT_PROMPT_TOKENS}][/dim]",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEXT",
            rich_help_panel=REQUESTS,
            help="The same prompt for every request (the server may cache it).",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            rich_help_panel=REQUESTS,
            help="Take prompts in turn from a file: one per line, or in a .jsonl file one object"
            ' with "prompt" per line.',
        ),
    ] = None,
    max_tokens: Annotated[
        str,
        typer.Option(
            "--max-tokens",
            metavar="N|N-M",
            rich_help_panel=REQUESTS,
            help="The token limit of an answer, or a range to draw it from.",
        ),
    ] = "128",
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="NAME=VALUE",
            rich_help_panel=REQUESTS,
            help="Set a field of the request's body, like temperature=0 or ignore_eos=true. null"
            " leaves the field out. Repeatable.",
        ),
    ] = None,
    usage: Annotated[
        bool,
        typer.Option(
            "--usage/--no-usage",
            rich_help_panel=REQUESTS,
            help="Ask for the server's count of tokens (stream_options.include_usage).",
        ),
    ] = True,
    seed: Annotated[
        int,
        typer.Option(
            "--seed",
            metavar="N",
            rich_help_panel=REQUESTS,
            help="The same seed gives the same prompts and arrivals.",
        ),
    ] = 0,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            show_default=False,
            rich_help_panel=SERVER,
            help="The API key. Prefer PENSTOCK_API_KEY: other users of this machine can see"
            " arguments.",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="S",
            rich_help_panel=SERVER,
            help="Fail a request after S seconds.",
        ),
    ] = 300.0,
    slo: Annotated[
        str | None,
        typer.Option(
            "--slo",
            metavar="LIMITS",
            rich_help_panel=RESULTS,
            help="Count the requests within limits, like ttft=500ms,itl=50ms,e2e=10s. itl is an"
            " answer's mean.",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            rich_help_panel=RESULTS,
            help="Save all figures, and a row for each request.",
        ),
    ] = None,
    plot_to: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            rich_help_panel=RESULTS,
            help="Save a plot as .html, .png or .svg (pip install 'penstock-server\\[plot]').",
        ),
    ] = None,
) -> None:
    try:
        options = BenchOptions(
            url=url,
            load=_load(concurrency, rate, arrivals, requests, duration),
            api=api,
            model=model,
            prompts=_prompts(prompt_tokens, prompt, prompts),
            max_tokens=Lengths.parse(max_tokens),
            warm_up=warm_up,
            timeout_s=_positive("--timeout", timeout),
            include_usage=usage,
            fields=dict(parse_field(each) for each in field or ()),
            limits_s=None if slo is None else parse_slo(slo),
            seed=seed,
            api_key=api_key or key_from_environment(),
        )
        if plot_to is not None:
            plot.check(plot_to)
        if json is not None and not json.absolute().parent.is_dir():
            raise ValueError(f"there is no folder {json.parent}")
        _run(options, json, plot_to)
    except BenchError as error:
        fail(clean(str(error)), error.hint)
    except (ValueError, OSError) as error:
        fail(clean(str(error)))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _run(options: BenchOptions, json: Path | None, plot_to: Path | None) -> None:
    from penstock.server import raise_file_limit  # slow: not at the start of every command

    raise_file_limit()
    with (
        display(options.load, Console(stderr=True, highlight=False)) as on_progress,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        result, run = runner.run(bench(options, on_progress))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    console.print(report(result))
    if json is not None:
        json.write_bytes(to_json(result))
    if plot_to is not None:
        figure = plot.draw(result, run.answers, run.began)
        plot.save(figure, plot_to, f"{result.model} at {result.url}", plot.page_body(result))
    if result.was_interrupted:
        raise typer.Exit(130)
    if not result.figures.num_finished:
        raise typer.Exit(1)


def _load(
    concurrency: int | None,
    rate: float | None,
    arrivals: Arrivals,
    requests: int | None,
    duration: float | None,
) -> Load:
    if rate is not None and concurrency is not None:
        raise ValueError(
            "choose --rate (open loop) or --concurrency (closed loop), not both: a limited number"
            " of clients cannot keep a rate"
        )
    if rate is None and concurrency is None:
        concurrency = DEFAULT_CONCURRENCY
    if requests is None and duration is None:
        requests = DEFAULT_REQUESTS
    return Load(
        concurrency,
        None if rate is None else _positive("--rate", rate),
        arrivals,
        requests,
        None if duration is None else _positive("--duration", duration),
    )


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a number above 0")
    return value


def _prompts(lengths: str | None, prompt: str | None, file: Path | None) -> Prompts:
    if sum(each is not None for each in (lengths, prompt, file)) > 1:
        raise ValueError("choose one of --prompt-tokens, --prompt and --prompts")
    if prompt is not None:
        return Prompts([prompt])
    if file is not None:
        return Prompts(_read_prompts(file))
    return Prompts(lengths=Lengths.parse(lengths or DEFAULT_PROMPT_TOKENS))


class _PromptLine(msgspec.Struct):
    prompt: str


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        if file.suffix == ".jsonl":
            lines = [msgspec.json.decode(line, type=_PromptLine).prompt for line in lines]
    except OSError as error:
        raise ValueError(f"--prompts {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--prompts {file}: the file is not UTF-8 text") from None
    except msgspec.DecodeError as error:
        raise ValueError(
            f'--prompts {file}: each line must be an object with "prompt" ({error})'
        ) from None
    if not lines:
        raise ValueError(f"--prompts {file}: the file has no prompts")
    return lines
