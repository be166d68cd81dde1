"""`penstock generate` and `penstock chat`: talk to a model in the terminal.

In: a prompt or a conversation, and the URL of a server or the settings of a new one. Out: text on
standard output as it arrives; figures and errors on standard error. This module does not know how a
server starts or how a stream travels (see `penstock.client`).
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from penstock.cli.conversation import Conversation, turn
from penstock.cli.key import key_from_environment
from penstock.cli.markdown import MarkdownWriter, renders_markdown
from penstock.cli.screen import Screen, fail, figures
from penstock.client import Client, Completion, Options, PenstockError, Stream
from penstock.errors import StartError
from penstock.events import Timings, Usage

CHAT_MAX_TOKENS = 1024
CHAT_HELP = """\
/help          Show this help
/system TEXT   Give an instruction for the next answers; without TEXT, remove it
/regenerate    Answer the last question again
/save FILE     Save the conversation as Markdown in a new file
/clear         Forget the conversation and start a new one
/exit          Leave the chat, as Ctrl-D does
Ctrl-C         Stop the answer; the conversation keeps the text received so far.
               At the prompt: drop the line; a second Ctrl-C leaves the chat"""

P = ParamSpec("P")

SERVER, ANSWER = "Server", "Answer"

commands = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


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
            help="End the answer before this text. Repeat the option for up to 4 texts.",
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

    def system_turns(self) -> list[dict[str, str]]:
        """Return the conversation's first turns: the instruction, if one was given."""
        return [] if self.system is None else [turn("system", self.system)]

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


@commands.command(
    "generate",
    help="Continue a text, and print each token as the model generates it.\n\n"
    '[bold]penstock generate "Once upon a time"[/bold]  start a server with the built-in model'
    "\n\n"
    '[bold]penstock generate --url http://127.0.0.1:8000 "Once"[/bold]  use a running server\n\n'
    '[bold]penstock generate --temperature 0 --stop . "The cat"[/bold]  one likely sentence\n\n'
    "[bold]cat story.txt | penstock generate[/bold]  read the prompt from standard input\n\n"
    '[bold]penstock generate --no-stream --json "Once"[/bold]  print one JSON object\n\n'
    "Ctrl-C stops the answer. Only the text goes to standard output.",
)
@with_shared_options
def _generate(
    options: SharedOptions,
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue. Without it, or with -, read standard input."),
    ] = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream/--no-stream", help="Print text as it arrives, or all of it at the end."
        ),
    ] = True,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a line of JSON per event; with --no-stream, one object."
        ),
    ] = False,
) -> None:
    text = _read_prompt(prompt)
    screen = Screen()
    fields = options.generate_options()
    asked = text if options.system is None else None
    if asked is None:
        fields["messages"] = [*options.system_turns(), turn("user", text)]
    with options.connected() as client:
        if stream:
            write = _write_events if as_json else _write_text
            with client.stream(asked, **screen.cut_callbacks(), **fields) as answer:
                write(answer, screen)
        else:
            completion = client.generate(asked, **fields)
            _write_completion(completion, screen, as_json=as_json)


@commands.command(
    "chat",
    help="Chat with a model.\n\n"
    "[bold]penstock chat[/bold]  start a server with the built-in model\n\n"
    "[bold]penstock chat --url http://127.0.0.1:8000[/bold]  use a running server\n\n"
    '[bold]penstock chat --system "Answer in one sentence."[/bold]  give an instruction\n\n'
    "Ctrl-C stops an answer and keeps the text received so far. Ctrl-D leaves the chat. Type /help"
    " for the other commands.",
)
@with_shared_options
def _chat(options: SharedOptions) -> None:
    screen = Screen(ends_lines=True)
    fields = options.generate_options()
    if options.max_tokens is None:
        fields["max_tokens"] = CHAT_MAX_TOKENS
    with options.connected() as client:
        screen.note(
            f"{client.model()} at {client.url}. Type /help for the commands, Ctrl-D to leave."
        )
        chat = _Chat(client, fields, screen, Conversation(options.system or ""))
        for line in _lines(screen):
            if line == "/exit":
                break
            if line:
                chat.take(line)


class _Chat:
    """What a chat does with each line: a command, or a question for the model."""

    def __init__(
        self, client: Client, fields: Options, screen: Screen, conversation: Conversation
    ) -> None:
        self._client = client
        self._fields = fields
        self._screen = screen
        self._conversation = conversation

    def take(self, line: str) -> None:
        name, _, text = line.partition(" ")
        if not name.startswith("/"):
            self._ask(line)
        elif name == "/help":
            self._screen.say(CHAT_HELP)
        elif name == "/clear":
            self._conversation.clear()
            self._screen.note("Started a new conversation.")
        elif name == "/system":
            self._conversation.system = text.strip()
            self._screen.note("The instruction is set." if text else "The instruction is removed.")
        elif name == "/regenerate":
            self._regenerate()
        elif name == "/save":
            self._save(text.strip())
        else:
            self._screen.say(f"There is no command {name}. Type /help for the commands.")

    def _ask(self, question: str) -> bool:
        """Ask a question and return True if an answer was kept."""
        self._fields["messages"] = self._conversation.messages(question)
        answer = _converse(self._client, self._fields, self._screen)
        if answer:
            self._conversation.add(question, answer)
        return bool(answer)

    def _regenerate(self) -> None:
        last = self._conversation.take_last()
        if last is None:
            self._screen.say("There is no answer yet.")
        elif not self._ask(last[0]):
            self._conversation.add(*last)

    def _save(self, name: str) -> None:
        if not name:
            self._screen.say("Name a file: /save story.md")
            return
        try:
            self._conversation.save(Path(name).expanduser())
        except OSError as error:
            self._screen.say(f"Error: {name}: {error.strerror}")
        else:
            self._screen.note(f"Saved the conversation in {name}.")


def _converse(client: Client, fields: Options, screen: Screen) -> str:
    """Write an answer and return its text. Ctrl-C and errors end the answer, not the chat."""
    write = _write_rendered if renders_markdown() else _write_text
    answer: Stream | None = None
    try:
        with client.stream(**screen.cut_callbacks(), **fields) as answer:
            write(answer, screen)
    except KeyboardInterrupt:
        screen.end_line()
        screen.say("(stopped)")
    except (PenstockError, ValueError) as error:
        screen.end_line()
        screen.say(f"Error: {error}")
    return answer.text if answer is not None else ""


def _write_rendered(answer: Stream, screen: Screen) -> None:
    """Write an answer as rendered Markdown."""
    with MarkdownWriter() as writer, screen.notes_to(writer.note):
        for text in answer:
            writer.write(text)
    screen.note(figures(answer.usage, answer.timings, answer.finish_reason))


def _write_completion(completion: Completion, screen: Screen, *, as_json: bool) -> None:
    if as_json:
        screen.write_json(
            {
                "text": completion.text,
                "usage": _usage_fields(completion.usage),
                "request_time": completion.request_time,
                "finish_reason": completion.finish_reason,
            }
        )
        return
    screen.write(completion.text)
    screen.end_line()
    screen.note(figures(completion.usage, completion.timings, completion.finish_reason))


def _write_text(answer: Stream, screen: Screen) -> None:
    for text in answer:
        screen.write(text)
    screen.end_line()
    screen.note(figures(answer.usage, answer.timings, answer.finish_reason))


def _write_events(answer: Stream, screen: Screen) -> None:
    """Write a line of JSON for each event, in the native API's form."""
    index = 0
    for index, text in enumerate(answer, 1):
        screen.write_json({"token": text, "index": index - 1, "finished": False})
    screen.write_json(
        {
            "token": "",
            "index": index,
            "finished": True,
            "finish_reason": answer.finish_reason,
            "usage": _usage_fields(answer.usage),
            "timings": _timings_fields(answer.timings),
        }
    )


def _usage_fields(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    names = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
    return {name: getattr(usage, name) for name in names}


def _timings_fields(timings: Timings | None) -> dict[str, float | None] | None:
    if timings is None:
        return None
    return {name: getattr(timings, name) for name in timings.__struct_fields__}


def _read_prompt(argument: str | None) -> str:
    """Return the argument, or standard input without the newline that a shell adds."""
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise ValueError('give a prompt: penstock generate "Once upon a time"')
    try:
        return sys.stdin.buffer.read().decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise ValueError("the prompt is not UTF-8 text") from None


def _lines(screen: Screen) -> Iterator[str]:
    """Yield each line that the user types.

    Ctrl-C drops the line. Ctrl-D, or a second Ctrl-C in a row, ends the iteration. (One alone does
    not: it may have been meant for an answer that has just ended.)
    """
    with suppress(ImportError):  # some builds of Python lack it
        import readline  # noqa: F401 - importing it makes `input` edit its line

    prompt = "> " if sys.stdin.isatty() and screen.is_terminal else ""
    was_interrupted = False
    while True:
        try:
            line = input(prompt).strip()
        except KeyboardInterrupt:
            if was_interrupted:
                screen.say("")
                return
            was_interrupted = True
            screen.say("\nPress Ctrl-C again, or Ctrl-D, to leave.")
        except UnicodeDecodeError:
            screen.say("Error: that line is not UTF-8 text")
        except EOFError:
            if prompt:
                screen.say("")
            return
        else:
            was_interrupted = False
            yield line


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
