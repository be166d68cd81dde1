"""`penstock generate` and `penstock chat`: a model in the terminal.

In: a prompt or a conversation, and the URL of a server or a way to start one. Out: text on standard
output as it comes; figures and errors on standard error. Not known here: how a server is started,
how a stream travels (see `client`).

What a model says is not trusted: on a terminal its control characters are shown, not obeyed.
Written to a file or a pipe, the text is left as it is.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Annotated, Any, NoReturn, TypedDict, Unpack

import typer

from penstock.client import Client, Completion, Options, PenstockError, Stream
from penstock.errors import StartError
from penstock.events import Timings, Usage

OpenServer = Callable[[], AbstractContextManager[str]]
"""Makes a server available for a while and gives its URL."""

CHAT_MAX_TOKENS = 1024
CHAT_HELP = """\
/help    this
/clear   forget the conversation and begin again
/exit    leave; so does Ctrl-D
Ctrl-C   stop the answer; what was said of it stays in the conversation"""

# All of C0 but tab and newline, DEL, and C1, which terminals that read UTF-8 obey as well. A
# carriage return would only overwrite the line, so it is dropped, and CRLF comes out as LF.
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_SHOWN |= {ord("\t"): "\t", ord("\n"): "\n", ord("\r"): ""}


def printable(text: str) -> str:
    """The text with its control characters made visible, so that a terminal does not obey them."""
    return text.translate(_SHOWN)


def generate(
    prompt: str,
    *,
    server: OpenServer,
    stream: bool = True,
    as_json: bool = False,
    system: str | None = None,
    **options: Unpack[Options],
) -> None:
    """Write the answer to a prompt on standard output.

    With `as_json` as one JSON object, or where it is streamed as one line of JSON for each event.
    With `system` the prompt is a question in a conversation that begins with this instruction.
    Raises PenstockError and StartError.
    """
    screen = _Screen()
    asked: str | None = prompt
    if system is not None:
        asked, options["messages"] = None, [_turn("system", system), _turn("user", prompt)]
    with server() as url, Client(url, api_key=_key()) as client:
        if not stream:
            completion = client.generate(asked, **options)
            if as_json:
                screen.write_json(
                    {
                        "text": completion.text,
                        "usage": _counts(completion.usage),
                        "request_time": completion.request_time,
                        "finish_reason": completion.finish_reason,
                    }
                )
            else:
                screen.write(completion.text)
                screen.end_line()
                screen.note(_figures(completion))
            return
        with client.stream(asked, **screen.told_of_cuts(), **options) as answer:
            if as_json:
                _write_events(answer, screen)
            else:
                _write_text(answer, screen)


def chat(*, server: OpenServer, system: str | None = None, **options: Unpack[Options]) -> None:
    """Talk with the model, a line at a time, until /exit or the end of the input.

    Raises PenstockError and StartError where there is nobody to talk with; what goes wrong later is
    said, and the conversation goes on.
    """
    screen = _Screen(ends_lines=True)
    beginning = [] if system is None else [_turn("system", system)]
    conversation = list(beginning)
    options.setdefault("max_tokens", CHAT_MAX_TOKENS)
    with server() as url, Client(url, api_key=_key()) as client:
        screen.note(f"{client.model()} at {url}. /help says what else there is, Ctrl-D leaves.")
        for line in _lines(screen):
            if line == "/exit":
                break
            if line == "/help":
                screen.say(CHAT_HELP)
            elif line == "/clear":
                conversation = list(beginning)
                screen.note("The conversation begins anew.")
            elif line.startswith("/"):
                screen.say(f"There is no command {line.split()[0]}. /help lists them.")
            elif line:
                question = _turn("user", line)
                options["messages"] = [*conversation, question]
                if answer := _converse(client, options, screen):
                    conversation += [question, _turn("assistant", answer)]


def _converse(client: Client, options: Options, screen: "_Screen") -> str:
    """Write one answer of a chat and return it. Ctrl-C and errors end the answer, not the chat."""
    answer = None
    try:
        with client.stream(**screen.told_of_cuts(), **options) as answer:
            _write_text(answer, screen)
    except KeyboardInterrupt:
        screen.end_line()
        screen.say("(stopped)")
    except (PenstockError, ValueError) as error:
        screen.end_line()
        screen.say(f"Error: {error}")
    return answer.text if answer is not None else ""


def _write_text(answer: Stream, screen: "_Screen") -> None:
    for text in answer:
        screen.write(text)
    screen.end_line()
    screen.note(_figures(answer))


def _write_events(answer: Stream, screen: "_Screen") -> None:
    """A line of JSON for each event, as the native API has it."""
    index = 0
    for index, text in enumerate(answer, 1):
        screen.write_json({"token": text, "index": index - 1, "finished": False})
    screen.write_json(
        {
            "token": "",
            "index": index,
            "finished": True,
            "finish_reason": answer.finish_reason,
            "usage": _counts(answer.usage),
            "timings": _seconds(answer.timings),
        }
    )


def _figures(answer: Stream | Completion) -> str:
    """`27 tokens · 84.2 tokens/s · first after 0.012 s · stop`, as far as it is known."""
    parts = []
    if answer.usage is not None:
        count = answer.usage.completion_tokens
        parts.append(f"{count} token" if count == 1 else f"{count} tokens")
    if answer.timings is not None:
        if answer.timings.tokens_per_second is not None:
            parts.append(f"{answer.timings.tokens_per_second:.1f} tokens/s")
        if answer.timings.time_to_first_token is not None:
            parts.append(f"first after {answer.timings.time_to_first_token:.3f} s")
    if answer.finish_reason is not None:
        parts.append(answer.finish_reason)
    return " · ".join(parts)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _counts(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: getattr(usage, name) for name in names}


def _seconds(timings: Timings | None) -> dict[str, float | None] | None:
    if timings is None:
        return None
    return {name: getattr(timings, name) for name in timings.__struct_fields__}


def _lines(screen: "_Screen") -> Iterator[str]:
    """What a person types, a line at a time. Ctrl-C drops the line, Ctrl-D ends."""
    with suppress(ImportError):  # some Pythons are built without it
        import readline  # noqa: F401 - importing it makes `input` edit its line

    prompt = "> " if sys.stdin.isatty() and screen.is_terminal else ""
    while True:
        try:
            yield input(prompt).strip()
        except KeyboardInterrupt:
            screen.say("")
        except UnicodeDecodeError:
            screen.say("Error: that line is not UTF-8 text")
        except EOFError:
            if prompt:
                screen.say("")
            return


class _Told(TypedDict):
    """What `Client.stream` tells of a connection."""

    on_cut: Callable[[str], None]
    on_resume: Callable[[], None]


class _Screen:
    """Standard output for what the model says, standard error for everything else."""

    def __init__(self, *, ends_lines: bool = False) -> None:
        self.is_terminal = sys.stdout.isatty()
        self._ends_lines = ends_lines or self.is_terminal
        self._is_in_line = False
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters
                encoding = None if stream.isatty() else "utf-8"
                stream.reconfigure(encoding=encoding, errors="replace")

    def write(self, text: str) -> None:
        """Text of the model's, at once."""
        sys.stdout.write(printable(text) if self.is_terminal else text)
        sys.stdout.flush()
        if text:
            self._is_in_line = not text.endswith("\n")

    def write_json(self, value: object) -> None:
        """A line of JSON, in ASCII for a terminal: that has no control characters."""
        sys.stdout.write(json.dumps(value, ensure_ascii=self.is_terminal) + "\n")
        sys.stdout.flush()

    def end_line(self) -> None:
        """Begin a new line if the text left one open; what goes to a file is left as it is."""
        if self._is_in_line and self._ends_lines:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._is_in_line = False

    def told_of_cuts(self) -> "_Told":
        """What to call when a stream is cut, and when it goes on, which a person then sees."""
        return {
            "on_cut": lambda _: self._note_amid("connection lost, resuming..."),
            "on_resume": lambda: self._note_amid("resumed"),
        }

    def _note_amid(self, text: str) -> None:
        """A note in the middle of the text, which then goes on in a line of its own."""
        if self.is_terminal and sys.stderr.isatty():
            self.end_line()
        self.note(text)

    def say(self, text: str) -> None:
        """A line for the person, on standard error."""
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201 - that is its purpose

    def note(self, text: str) -> None:
        """A dim line for a person at a terminal, and for nobody else."""
        if sys.stderr.isatty():
            plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
            before, after = ("", "") if plain else ("\x1b[2m", "\x1b[0m")
            print(f"{before}{printable(text)}{after}", file=sys.stderr, flush=True)  # noqa: T201


# --- the commands, for `penstock.cli.main` to add

commands = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="PENSTOCK_URL",
        metavar="URL",
        help="A server that runs already; its key, where it wants one, is in PENSTOCK_API_KEY."
        " Without it this command starts an engine of its own.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="The model of an engine of its own, as in serve."
    ),
]
Engine = Annotated[
    str | None, typer.Option("--engine", metavar="ENGINE", help="Its engine, as in serve.")
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="An instruction before the conversation."),
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", help="Generate at most this many tokens.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="T", help="0 takes the likeliest token, higher is more varied."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p", metavar="P", help="Choose among the likeliest tokens of this total probability."
    ),
]
TopK = Annotated[
    int | None,
    typer.Option("--top-k", metavar="K", help="Choose among this many tokens; 0 among all."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same answer.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End before this text; up to 4 times."),
]


@commands.command(
    "generate",
    help="Continue a text, every token as it is made.\n\n"
    '[bold]penstock generate "Once upon a time"[/bold]  an engine of its own, the built-in model'
    "\n\n"
    '[bold]penstock generate --url http://127.0.0.1:8000 "Once"[/bold]  a server that runs already'
    "\n\n"
    '[bold]penstock generate --temperature 0 --stop . "The cat"[/bold]  one likely sentence\n\n'
    "[bold]cat story.txt | penstock generate[/bold]  the prompt from standard input\n\n"
    '[bold]penstock generate --no-stream --json "Once"[/bold]  one JSON object, for programs\n\n'
    "Ctrl-C stops it. Only the text goes to standard output.",
)
def _generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue; - or nothing reads it from standard input."),
    ] = None,
    url: Url = None,
    model: Model = None,
    engine: Engine = None,
    stream: Annotated[
        bool,
        typer.Option("--stream/--no-stream", help="Write text as it comes, or all at the end."),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, or one for each event of a stream.")
    ] = False,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    with _ending_well():
        generate(
            _prompt(prompt),
            server=_server(url, model, engine),
            stream=stream,
            as_json=as_json,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop or None,
        )


@commands.command(
    "chat",
    help="Talk with a model.\n\n"
    "[bold]penstock chat[/bold]  an engine of its own, the built-in model\n\n"
    "[bold]penstock chat --url http://127.0.0.1:8000[/bold]  a server that runs already\n\n"
    '[bold]penstock chat --system "Answer in one sentence."[/bold]  with an instruction\n\n'
    "Ctrl-C stops an answer and keeps what was said of it, Ctrl-D leaves, /help lists the rest.",
)
def _chat(
    url: Url = None,
    model: Model = None,
    engine: Engine = None,
    system: System = None,
    max_tokens: MaxTokens = CHAT_MAX_TOKENS,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    with _ending_well():
        chat(
            server=_server(url, model, engine),
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop or None,
        )


def _prompt(argument: str | None) -> str:
    """The prompt given, or standard input without the newline that a shell ends it with."""
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise ValueError('give a prompt: penstock generate "Once upon a time"')
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise ValueError("the prompt is not UTF-8 text") from None


def _key() -> str | None:
    """The key for a running server: the first where that one is told of several."""
    return os.environ.get("PENSTOCK_API_KEY", "").partition(",")[0].strip() or None


def _server(url: str | None, model: str | None, engine: str | None) -> OpenServer:
    if url is not None:
        if model is not None or engine is not None:
            raise ValueError("--model and --engine are for an engine of its own: leave out the URL")
        return lambda: nullcontext(url)

    def own() -> AbstractContextManager[str]:
        from penstock.server import local_server
        from penstock.settings import load_settings

        given = {"model": model, "engine": engine}
        flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        # Its port is known to nobody else, and it is gone in a moment: what guards a server for
        # others would only be in the way.
        unguarded: dict[str, Any] = {"api_key": [], "admin_key": [], "keys": ""}
        unguarded |= {"tls_cert": "", "tls_key": ""}
        return local_server(load_settings(host="127.0.0.1", port=0, **unguarded, **flags))

    return own


@contextmanager
def _ending_well() -> Iterator[None]:
    """One sentence instead of a traceback, and the exit status that shells expect."""
    try:
        yield
    except KeyboardInterrupt:
        _Screen().say("")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader has seen enough; nothing is left to flush into its pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    except StartError as error:
        _fail(f"{error} {error.hint}".rstrip())
    except (PenstockError, ValueError) as error:
        _fail(str(error))


def _fail(sentence: str) -> NoReturn:
    _Screen().say(f"Error: {sentence}")
    raise typer.Exit(1)
