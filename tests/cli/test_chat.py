"""`penstock generate` and `penstock chat` in real processes and real terminals."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cli.screen import printable
from penstock.cli.statuses import StatusTeller
from penstock.client import StreamStatus
from tests.client.test_answer import FINISH, delta, frame
from tests.support.dying import mortal
from tests.support.scripted_server import END, HEAD, Peer, chunk, scripted_server, whole

PATIENCE_S = 30.0
AGAIN_S = 5.0

# Make the given terminal the controlling terminal, so that Ctrl-C reaches the process.
RUN = "from penstock.cli.main import main; main()"
RUN_IN_TERMINAL = (
    "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    # A script that runs tests in the background ignores SIGINT, and child processes inherit that.
    f"signal.signal(signal.SIGINT, signal.default_int_handler); {RUN}"
)


def environment(**more: str) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    return {**ours, "TERM": "dumb", "LC_ALL": "C.UTF-8", **more}


def run(*arguments: str, stdin: bytes = b"", **more: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command whose standard input and outputs are pipes."""
    return subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        env=environment(**more),
    )


class Terminal:
    """A command in its own terminal. `expect` waits for words, `type` presses keys.

    Wait for the prompt before you type: readline does not see a Ctrl-D from before the prompt.
    """

    def __init__(self, *arguments: str, **more: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN_IN_TERMINAL, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment(**more),
        )
        os.close(slave)
        self.seen = ""
        """All output so far."""
        self._unread = 0
        self._has_ended = False

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, words: str) -> str:
        """Wait for these words; return the output since the previous call, up to the words."""
        end = time.monotonic() + PATIENCE_S
        while words not in self.seen[self._unread :]:
            assert self._read(end), f"no {words!r} in {self.seen[self._unread :]!r}"
        start, self._unread = self._unread, self.seen.index(words, self._unread) + len(words)
        return self.seen[start : self._unread]

    def interrupt(self, until: str) -> str:
        """Press Ctrl-C until these words appear; return the output up to them.

        Python and readline check for signals before they begin to wait. A signal that arrives in
        the microseconds between takes effect only with the next key or byte. People press Ctrl-C
        again.
        """
        self._press_until(lambda: until in self.seen[self._unread :])
        return self.expect(until)

    def interrupt_to_end(self) -> int:
        """Press Ctrl-C until the command ends, as `interrupt` does; return its exit status."""
        self._press_until(lambda: self._has_ended)
        return self.wait()

    def _press_until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE_S / AGAIN_S)):
            self.type("\x03")
            end = time.monotonic() + AGAIN_S
            while not is_so() and self._read(end):
                pass
            if is_so():
                return

    def wait(self) -> int:
        """Wait until the command ends; return its exit status."""
        end = time.monotonic() + PATIENCE_S
        while self._read(end):
            pass
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
        if not ready:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux reports this way that the other side is closed
            piece = b""
        self._has_ended = not piece
        self.seen += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)


@contextmanager
def terminal(*arguments: str, **more: str) -> Iterator[Terminal]:
    command = Terminal(*arguments, **more)
    try:
        yield command
    finally:
        command.close()


def answers(*texts: str, reason: str = "stop") -> Callable[[Peer], None]:
    """Return a script that sends a whole stream of these texts."""
    frames = [delta(n, text) for n, text in enumerate(texts)]
    end = frame(**{**FINISH, "index": len(texts), "finish_reason": reason})
    return lambda peer: peer.send(HEAD, *map(chunk, [*frames, end]), END)


def root(peer: Peer) -> None:
    assert (peer.method, peer.path) == ("GET", "/")
    peer.send(whole(b'{"message":"running","model":"tiny"}'))


def sent(peer: Peer) -> Any:
    return json.loads(peer.body)


# --- control characters


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31mb\x07\x00\x7f\x9b2J") == "a\\x1b[31mb\\x07\\x00\\x7f\\x9b2J"
    assert printable("1\n\t2\r\n3") == "1\n\t2\n3"


@given(st.text())
def test_nothing_a_terminal_obeys_is_left(text: str) -> None:
    shown = printable(text)
    assert all(c in "\t\n" or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0) for c in shown)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


# --- generate


def test_text_goes_to_a_pipe_unchanged_and_alone() -> None:
    text = "Hé\x1b[31m\r\n\x9b👋"
    with scripted_server(answers(*text)) as server:
        done = run("generate", "Hi", "--url", server.url)
    assert done.stdout == text.encode()
    assert done.stderr == b""
    assert done.returncode == 0
    assert sent(server.requests[0]) == {"prompt": "Hi", "stream": True, "resumable": True}


def test_a_terminal_is_shown_the_text_and_a_line_of_figures() -> None:
    with (
        scripted_server(answers("Hé", "\x1b]0;title\x07")) as server,
        terminal("generate", "Hi", "--url", server.url) as command,
    ):
        assert command.wait() == 0
    assert command.seen == ("Hé\\x1b]0;title\\x07\n2 tokens · first token after 0.200 s · stop\n")


def test_figures_are_dim_where_the_terminal_can() -> None:
    for more, line in (({}, "\x1b[2m2 tokens"), ({"NO_COLOR": "1"}, "\n2 tokens")):
        with (
            scripted_server(answers("a", "b")) as server,
            terminal("generate", "Hi", "--url", server.url, TERM="xterm", **more) as command,
        ):
            assert command.wait() == 0
        assert line in command.seen


def test_text_is_shown_as_it_comes() -> None:
    is_shown = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(delta(0, "one")))
        assert is_shown.wait(PATIENCE_S)
        peer.send(chunk(delta(1, " two")), chunk(frame(**FINISH)), END)

    with (
        scripted_server(script) as server,
        terminal("generate", "Hi", "--url", server.url) as command,
    ):
        assert command.expect("one") == "one"
        is_shown.set()
        assert command.expect("two") == " two"
        assert command.wait() == 0


def test_every_flag_is_sent() -> None:
    flags = ["--max-tokens", "5", "--temperature", "0", "--top-p", "0.5", "--top-k", "0"]
    flags += ["--seed", "7", "--stop", ".", "--stop", "\n\n"]
    with scripted_server(answers("a", "b")) as server:
        assert run("generate", "Hi", *flags, "--url", server.url).returncode == 0
    assert sent(server.requests[0]) == {
        "prompt": "Hi",
        "max_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 0,
        "seed": 7,
        "stop": [".", "\n\n"],
        "stream": True,
        "resumable": True,
    }


def test_with_an_instruction_the_prompt_is_a_question() -> None:
    with scripted_server(answers("a", "b")) as server:
        run("generate", "Hi", "--system", "Be short.", "--url", server.url)
    assert sent(server.requests[0])["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
    ]


def test_events_may_be_lines_of_json() -> None:
    with scripted_server(answers("Hé", "\x9b")) as server:
        done = run("generate", "Hi", "--json", "--url", server.url)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"token": "Hé", "index": 0, "finished": False},
        {"token": "\x9b", "index": 1, "finished": False},
        FINISH,
    ]


def test_json_on_a_terminal_holds_no_control_characters() -> None:
    with (
        scripted_server(answers("\x9b", "\x1b")) as server,
        terminal("generate", "Hi", "--json", "--url", server.url) as command,
    ):
        assert command.wait() == 0
    assert printable(command.seen) == command.seen
    assert json.loads(command.seen.splitlines()[0])["token"] == "\x9b"


COMPLETION = {
    "text": "Hé",
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "cached_tokens": 0,
    },
    "request_time": 0.25,
    "finish_reason": "length",
}


def test_a_whole_answer_comes_in_one_piece() -> None:
    def script(peer: Peer) -> None:
        peer.send(whole(json.dumps(COMPLETION).encode()))

    with scripted_server(script, script) as server:
        assert run("generate", "Hi", "--no-stream", "--url", server.url).stdout == "Hé".encode()
        done = run("generate", "Hi", "--no-stream", "--json", "--url", server.url)
    assert json.loads(done.stdout) == COMPLETION
    assert sent(server.requests[0])["stream"] is False


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["nothing", "-"])
def test_the_prompt_may_be_piped_in(arguments: list[str]) -> None:
    with scripted_server(answers("a", "b")) as server:
        run("generate", *arguments, stdin="Hé\n\n".encode(), PENSTOCK_URL=server.url)
    assert sent(server.requests[0])["prompt"] == "Hé\n"


def test_a_prompt_that_is_not_text_is_refused() -> None:
    done = run("generate", "--url", "http://127.0.0.1:9", stdin=b"\xff\xfe")
    assert (done.returncode, done.stderr) == (1, b"Error: the prompt is not UTF-8 text\n")


def test_without_a_prompt_a_terminal_is_asked_for_a_prompt() -> None:
    with terminal("generate") as command:
        assert command.wait() == 1
    assert command.seen == 'Error: give a prompt: penstock generate "Once upon a time"\n'


def hangs_up(peer: Peer) -> None:
    peer.send(HEAD, chunk(delta(0, "Hé")))
    peer.close()


def has_forgotten(peer: Peer) -> None:
    assert peer.method == "GET"
    assert peer.path.partition("?")[0] == "/streams/a-stream"
    problem = b'{"status":404,"detail":"There is no such stream.","code":"stream_not_found"}'
    peer.send(whole(problem, b"404 Not Found", b"application/problem+json"))


def is_ended(peer: Peer) -> None:
    """The command leaves the stream and cancels it."""
    assert (peer.method, peer.path) == ("DELETE", "/streams/a-stream")
    peer.send(whole(b'{"id":"a-stream","finish_reason":"cancelled"}'))


def refuses(peer: Peer) -> None:
    problem = b'{"title":"x","status":422,"detail":"Too \\u001b[1mlong.","code":"prompt_too_long"}'
    peer.send(whole(problem, b"422 Unprocessable Content", b"application/problem+json"))


def fails(peer: Peer) -> None:
    error = {"code": "engine_died", "message": "The engine stopped.", "retry_safe": True}
    peer.send(HEAD, chunk(frame(finished=True, finish_reason="error", error=error)), END)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            hangs_up,
            "the connection to {url} ended before the answer did; the rest is lost because the"
            " server no longer has it: There is no such stream.",
        ),
        (refuses, "Too \\x1b[1mlong."),
        (fails, "The engine stopped."),
        (
            lambda peer: peer.send(whole(b"<html>", content_type=b"text/html")),
            "the response has the type text/html instead of text/event-stream: is this a Penstock"
            " server?",
        ),
        (
            lambda peer: peer.send(whole(b"<html>", b"500 Oops", b"text/html")),
            "the server answered 500 Oops",
        ),
    ],
    ids=["cut", "refused", "failed", "a page", "an error page"],
)
def test_an_error_of_the_answer_is_one_sentence(
    script: Callable[[Peer], None], sentence: str
) -> None:
    with scripted_server(script, has_forgotten) as server:
        done = run("generate", "Hi", "--url", server.url)
    assert done.stderr.decode() == f"Error: {sentence.format(url=server.url)}\n"
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--url", "http://127.0.0.1:9"], "no server at http://127.0.0.1:9: start one with"),
        (["--url", "localhost"], "the URL must be like http://127.0.0.1:8000"),
        (["--url", "http://127.0.0.1:9", "--model", "x.gguf"], "leave out the URL"),
        (["--engine", "steam"], "engine"),
        (["--model", "./nowhere.gguf"], "nowhere.gguf"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "Hi"], ["chat"]], ids=["generate", "chat"])
def test_an_error_before_the_answer_is_one_sentence(
    command: list[str], arguments: list[str], sentence: str
) -> None:
    done = run(*command, *arguments)
    error = done.stderr.decode()
    assert error.startswith("Error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert (done.returncode, done.stdout) == (1, b"")


def test_ctrl_c_ends_the_generation_at_once() -> None:
    is_gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(HEAD, chunk(delta(0, "one")))
        peer.wait_until_gone()
        is_gone.set()

    with (
        scripted_server(script, is_ended) as server,
        terminal("generate", "Hi", "--url", server.url) as command,
    ):
        command.expect("one")
        assert command.interrupt(until="\n").endswith("^C\n")
        assert command.wait() == 130
        assert is_gone.wait(PATIENCE_S)
    assert command.seen.replace("^C", "") == "one\n"
    assert [peer.method for peer in server.requests] == ["POST", "DELETE"]


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    def script(peer: Peer) -> None:
        peer.send(HEAD)
        for n in range(100_000):
            peer.send(chunk(delta(n, "word ")))

    with scripted_server(script, is_ended) as server:
        done = subprocess.Popen(
            [sys.executable, "-c", RUN, "generate", "Hi", "--url", server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        assert done.stdout is not None
        assert done.stdout.read(9) == b"word word"
        done.stdout.close()
        assert done.stderr is not None
        assert done.stderr.read() == b""
        done.stderr.close()
        assert done.wait(PATIENCE_S) == 128 + signal.SIGPIPE


def goes_on(*texts: str, after: int) -> Callable[[Peer], None]:
    """Return a script that sends the rest of a stream, from the event after event `after`."""
    first = after + 1
    frames = [delta(n, text) for n, text in enumerate(texts, first)]
    end = frame(**{**FINISH, "index": first + len(texts)})

    def script(peer: Peer) -> None:
        assert peer.headers["last-event-id"] == str(after)
        peer.send(HEAD, *map(chunk, [*frames, end]), END)

    return script


def test_a_cut_and_its_end_are_seen_by_a_person_at_a_terminal() -> None:
    with (
        scripted_server(hangs_up, goes_on("llo", after=0)) as server,
        terminal("generate", "Hi", "--url", server.url, TERM="xterm") as command,
    ):
        assert command.wait() == 0
    figures = command.seen.splitlines()[-1]
    assert command.seen == (
        f"Hé\n\x1b[2mconnection lost, resuming...\x1b[0m\n\x1b[2mresumed\x1b[0m\nllo\n{figures}\n"
    )


def test_a_person_at_a_terminal_is_told_of_a_dead_engine(tmp_path: Path) -> None:
    with mortal(tmp_path, after=5) as server:
        server.file.touch()
        arguments = ["generate", "Once upon a time", "--max-tokens", "20", "--temperature", "0"]
        with terminal(*arguments, "--url", server.running.url, TERM="xterm") as command:
            assert command.wait() == 0
    died = command.seen.index("the engine died and restarts; 5 tokens are kept")
    goes_on = command.seen.index("the answer goes on")
    assert died < goes_on
    assert "20 tokens" in command.seen[goes_on:]


def test_each_thing_that_happens_is_told_once() -> None:
    teller = StatusTeller()
    statuses = [
        StreamStatus("queued", position=2, eta=0.2),
        StreamStatus("queued", position=2, eta=0.1),
        StreamStatus("queued", position=1),
        StreamStatus("prefill", prompt_tokens=13),
        StreamStatus("generating", tokens=0),
        StreamStatus("stalled", seconds=4.0, limit=10.0),
        StreamStatus("stalled", seconds=8.0, limit=10.0),
        StreamStatus("restarting", tokens=31),
        StreamStatus("prefill", prompt_tokens=44),
        StreamStatus("generating", tokens=31),
        StreamStatus("moved", tokens=1),
        StreamStatus("generating", tokens=1),
        StreamStatus("waiting", tokens=7),
        StreamStatus("waiting", tokens=7),
        StreamStatus("continuing", tokens=7),
        StreamStatus("generating", tokens=7),
        StreamStatus("of a later server"),
    ]
    assert [told for status in statuses if (told := teller.tell(status))] == [
        "waiting: place 2 in the queue, about 1 s",
        "waiting: place 1 in the queue",
        "the engine has been silent for 4 s; it is restarted after 10 s",
        "the engine died and restarts; 31 tokens are kept",
        "the answer goes on",
        "another server takes the answer over; 1 token is kept",
        "the answer goes on",
        "no server that runs the model is there; the answer waits for one",
        "a server that runs the model takes the answer over; 7 tokens are kept",
        "the answer goes on",
    ]


def test_a_cut_leaves_no_trace_in_a_pipe() -> None:
    with scripted_server(hangs_up, goes_on("llo", after=0)) as server:
        done = run("generate", "Hi", "--url", server.url)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "Héllo", b"")


# --- chat


def test_a_chat_is_kept_until_it_is_cleared() -> None:
    scripts = [root, answers("Hé", "!"), answers("I am ", "tiny."), answers("Who?", "")]
    with (
        scripted_server(*scripts) as server,
        terminal("chat", "--url", server.url, "--system", "Be kind.") as command,
    ):
        command.expect(f"tiny at {server.url}. Type /help for the commands, Ctrl-D to leave.")
        command.expect("> ")
        command.type("Hello\n")
        command.expect("Hé!\n")
        command.expect("> ")
        command.type("  Who are you?  \n")
        command.expect("I am tiny.\n")
        command.expect("> ")
        command.type("/help\n")
        command.expect("Forget the conversation")
        command.expect("> ")
        command.type("/nonsense\n")
        command.expect("There is no command /nonsense. Type /help for the commands.")
        command.expect("> ")
        command.type("\n/clear\n")
        command.expect("Started a new conversation.")
        command.expect("> ")
        command.type("Do you know me?\n")
        command.expect("Who?\n")
        command.expect("> ")
        command.type("/exit\n")
        assert command.wait() == 0
    system = {"role": "system", "content": "Be kind."}
    first = [
        system,
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hé!"},
        {"role": "user", "content": "Who are you?"},
    ]
    bodies = [sent(each) for each in server.requests[1:]]
    assert bodies[0] == {
        "messages": first[:2],
        "max_tokens": 1024,
        "stream": True,
        "resumable": True,
        "status_events": True,
    }
    assert bodies[1]["messages"] == first
    assert bodies[2]["messages"] == [system, {"role": "user", "content": "Do you know me?"}]


def test_ctrl_c_stops_an_answer_and_keeps_its_text() -> None:
    is_gone = threading.Event()

    def endless(peer: Peer) -> None:
        peer.send(HEAD, chunk(delta(0, "Once")), chunk(delta(1, " upon")))
        peer.wait_until_gone()
        is_gone.set()

    with (
        scripted_server(root, endless, is_ended, answers("a ", "time")) as server,
        terminal("chat", "--url", server.url) as command,
    ):
        command.expect("> ")
        command.type("Tell me a story\n")
        command.expect("Once upon")
        assert command.interrupt(until="> ").endswith("^C\n(stopped)\n> ")
        assert is_gone.wait(PATIENCE_S)
        command.type("Go on\n")
        command.expect("a time\n")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    assert sent(server.requests[3])["messages"] == [
        {"role": "user", "content": "Tell me a story"},
        {"role": "assistant", "content": "Once upon"},
        {"role": "user", "content": "Go on"},
    ]


def test_ctrl_c_before_the_first_word_forgets_the_question() -> None:
    is_asked = threading.Event()

    def silent(peer: Peer) -> None:
        is_asked.set()
        peer.wait_until_gone()

    with (
        scripted_server(root, silent, answers("Yes", ".")) as server,
        terminal("chat", "--url", server.url) as command,
    ):
        command.expect("> ")
        command.type("One\n")
        assert is_asked.wait(PATIENCE_S)
        command.interrupt(until="(stopped)\n> ")
        command.type("Two\n")
        command.expect("Yes.\n")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    assert sent(server.requests[2])["messages"] == [{"role": "user", "content": "Two"}]


def test_ctrl_c_drops_a_line_and_ctrl_d_leaves() -> None:
    with (
        scripted_server(root, answers("Yes", ".")) as server,
        terminal("chat", "--url", server.url) as command,
    ):
        command.expect("> ")
        command.type("never mi")
        command.expect("never mi")
        command.interrupt(until="\n> ")
        command.type("Well?\n")
        command.expect("Yes.\n")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    assert sent(server.requests[1])["messages"] == [{"role": "user", "content": "Well?"}]


@pytest.mark.parametrize(
    ("script", "sentence", "kept"),
    [
        (hangs_up, "There is no such stream.", "Hé"),
        (refuses, "Error: Too \\x1b[1mlong.", ""),
        (fails, "Error: The engine stopped.", ""),
    ],
    ids=["cut", "refused", "failed"],
)
def test_a_chat_goes_on_after_an_error(
    script: Callable[[Peer], None], sentence: str, kept: str
) -> None:
    scripts = [script, has_forgotten] if script is hangs_up else [script]
    with (
        scripted_server(root, *scripts, answers("Yes", ".")) as server,
        terminal("chat", "--url", server.url) as command,
    ):
        command.expect("> ")
        command.type("One\n")
        command.expect(sentence)
        command.expect("\n> ")
        command.type("Two\n")
        command.expect("Yes.\n")
        command.expect("> ")
        command.type("\x04")
        assert command.wait() == 0
    contents = [each["content"] for each in sent(server.requests[-1])["messages"]]
    assert contents == (["One", kept, "Two"] if kept else ["Two"])


def test_a_chat_may_be_piped() -> None:
    with scripted_server(root, answers("Hé", "!"), answers("Bye", ".")) as server:
        done = run("chat", "--url", server.url, stdin=b"Hello\n\nBye\n")
    assert done.stdout.decode() == "Hé!\nBye.\n"
    assert (done.returncode, done.stderr) == (0, b"")


# --- a server of its own


def test_without_a_url_the_commands_own_server_answers() -> None:
    done = run("generate", "Hi", "--engine", "mock", "--json", PENSTOCK_MOCK_INTERVAL="0")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    assert len(events) == events[-1]["usage"]["completion_tokens"] + 1
    assert events[-1]["finish_reason"] in ("stop", "length")


def test_ctrl_c_leaves_the_commands_own_server_running() -> None:
    endless = {"PENSTOCK_MOCK_INTERVAL": "0.02", "PENSTOCK_ENGINE_ARG": "length=100000"}
    with terminal("chat", "--engine", "mock", **endless) as command:
        command.expect("> ")
        processes = psutil.Process(command.process.pid).children(recursive=True)
        assert processes
        for _ in range(2):
            command.type("Hello\n")
            command.expect("Water")
            command.interrupt(until="(stopped)\n> ")
        command.type("\x04")
        assert command.wait() == 0
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive
