"""The options that `penstock generate` and `penstock chat` share, and how both end.

In: arguments. Out: the fields of a request, a client of the server at `--url` or of a new server,
and the exit status that shells expect. This module does not know what is asked.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from penstock.cli.key import key_from_environment
from penstock.cli.screen import Screen, fail
from penstock.client import Client, Options, PenstockError
from penstock.errors import StartError

CHAT_MAX_TOKENS = 1024

P = ParamSpec("P")

SERVER, ANSWER = "Server", "Answer"


@dataclass(kw_only=True)
class SharedOptions:
    """The options that `generate` and `chat` share. None means that an option was not given."""

    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="PENSTOCK_URL",
            metavar="URL",
            rich_help_panel=SERVER,
            help="Use the server at this URL, with the key in PENSTOCK_API_KEY if it needs a key."
            " Without --url, the command starts a server of its own and stops it at the end.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            rich_help_panel=SERVER,
            help="The model of the command's own server, as in penstock serve.",
        ),
    ] = None
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            rich_help_panel=SERVER,
            help="The engine of the command's own server, as in penstock serve.",
        ),
    ] = None
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            metavar="TEXT",
            rich_help_panel=ANSWER,
            help="An instruction that precedes the conversation.",
        ),
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            metavar="N",
            rich_help_panel=ANSWER,
            help="Generate at most N tokens, or what the model's context leaves."
            f" [dim]\\[default: 100 in generate, {CHAT_MAX_TOKENS} in chat][/dim]",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="T",
            rich_help_panel=ANSWER,
            help="Vary the answer: 0 always takes the likeliest token, 2 varies most."
            " [dim]\\[default: 0.7][/dim]",
        ),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            metavar="P",
            rich_help_panel=ANSWER,
            help="Sample from the likeliest tokens whose probabilities add up to P, 0 to 1."
            " [dim]\\[default: 0.95][/dim]",
        ),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="K",
            rich_help_panel=ANSWER,
            help="Sample from the K likeliest tokens; 0 means all tokens."
            " [dim]\\[default: 40][/dim]",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            rich_help_panel=ANSWER,
            help="Repeat an answer: the same seed, prompt and model give the same text."
            " [dim]\\[default: random][/dim]",
        ),
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop",
            metavar="TEXT",
            rich_help_panel=ANSWER,
            help="End the answer before this text. Repeat the option for up to 64 texts.",
        ),
    ] = None

    def generate_options(self) -> Options:
        """Return the fields of a request that these options set."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
            "stop": self.stop or None,
        }

    @contextmanager
    def connected(self) -> Iterator[Client]:
        """Open a client of the server at `url`, or of a server that runs as long as the context.

        Raises StartError if the server cannot start, and ValueError if the options contradict.
        """
        with self._server() as url, Client(url, api_key=key_from_environment()) as client:
            yield client

    def _server(self) -> AbstractContextManager[str]:
        if self.url is not None:
            if self.model is not None or self.engine is not None:
                raise ValueError("--model and --engine start a new server: leave out the URL")
            return nullcontext(self.url)
        from penstock.server import local_server
        from penstock.settings import load_settings

        given = {"model": self.model, "engine": self.engine}
        flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        # Nobody else knows the port, and the server ends with the command. Keys and TLS would only
        # get in the way.
        unguarded: dict[str, Any] = {"api_key": [], "admin_key": [], "keys": ""}
        unguarded |= {"tls_cert": "", "tls_key": ""}
        return local_server(load_settings(host="127.0.0.1", port=0, **unguarded, **flags))


def with_shared_options(
    command: Callable[Concatenate[SharedOptions, P], None],
) -> Callable[..., None]:
    """Return a command for Typer with the function's own parameters and the shared options.

    The command reports an error in one sentence and exits with the status that shells expect.
    """
    shared = inspect.signature(SharedOptions).parameters
    _, *own = inspect.signature(command).parameters.values()

    def run(**given: Any) -> None:
        options = SharedOptions(**{name: given.pop(name) for name in shared})
        with _exit_status():
            command(options, **given)  # type: ignore[call-arg] # what Typer read from `own`

    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    parameters += shared.values()
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # for Typer
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


@contextmanager
def _exit_status() -> Iterator[None]:
    """Turn an exception into one sentence and the exit status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        Screen().say("")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader closed the pipe; do not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except StartError as error:
        fail(f"{error} {error.hint}".rstrip())
    except (PenstockError, ValueError) as error:
        fail(str(error))
