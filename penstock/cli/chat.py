"""`penstock generate` and `penstock chat`: talk to a model in the terminal.

In: a prompt or a conversation, and the URL of a server or the settings of a new one. Out: text on
standard output as it arrives; figures and errors on standard error. This module does not know how a
server starts or how a stream travels (see `penstock.client`).
"""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.conversation import Conversation
from penstock.cli.markdown import MarkdownWriter, renders_markdown
from penstock.cli.screen import Screen, figures
from penstock.cli.shared_options import CHAT_MAX_TOKENS, SharedOptions, with_shared_options
from penstock.client import Client, Completion, Options, PenstockError, Stream
from penstock.events import Timings, Usage

CHAT_HELP = """\
/help          Show this help
/system TEXT   Give an instruction for the next answers; without TEXT, remove it
/regenerate    Answer the last question again
/save FILE     Save the conversation as Markdown in a new file
/clear         Forget the conversation and start a new one
/exit          Leave the chat, as Ctrl-D does
Ctrl-C         Stop the answer; the conversation keeps the text received so far.
               At the prompt: drop the line; a second Ctrl-C leaves the chat"""

commands = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


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
    if options.system is not None:
        fields["messages"] = Conversation(options.system).messages(text)
    with options.connected() as client:
        if stream:
            write = _write_events if as_json else _write_text
            with client.stream(asked, **screen.callbacks(), **fields) as answer:
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
        with client.stream(**screen.callbacks(), **fields) as answer:
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
