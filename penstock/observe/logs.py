"""The log: one line for each thing that happened, as text or as a JSON object.

In: Python's log records, with `fields` where there are any. Out: lines on a stream, each bounded
and with everything escaped, so that nothing that came from outside can end a line, begin another
or command a terminal. A thread writes them: whoever reads the log cannot hold up the server. Of an
exception the log tells its kind and where it was raised, never its words, which may be a client's.
"""

import asyncio
import contextlib
import io
import json
import logging
import queue
import re
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

MAX_LINE_BYTES = 8192
MAX_LINES_WAITING = 10_000
# What the last lines are given to get out at the end.
CLOSE_TIMEOUT_S = 2.0

_PLAIN = re.compile(r"[A-Za-z0-9._:/{}\[\]@+-]+")

log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """A record as one JSON object in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entries = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        return _encoded_within(MAX_LINE_BYTES - 1, entries)


class TextFormatter(logging.Formatter):
    """A record for people: level, logger, message, then `name=value`, then an exception's places.

    Only those places stand on lines of their own: they are the server's own files and functions.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = _fields_of(record)
        places = fields.pop("places", [])
        head = f"{record.levelname} {record.name}: {escaped(record.getMessage())}"
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in fields.items())])
        line = _cut(line, MAX_LINE_BYTES - 1)
        return "\n".join([line, *(f"    {escaped(place)}" for place in places)])


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What there is to say beside the message, in order."""
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fields |= exception_fields(error)
    return fields


def exception_fields(error: BaseException) -> dict[str, Any]:
    """An exception's kind and the places it came through, innermost last; not its words."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "exception": type(error).__name__,
        "places": [f"{each.filename}:{each.lineno} {each.name}" for each in frames[-20:]],
    }


def escaped(text: str) -> str:
    """The text in printable ASCII and whatever other letters; all else as JSON escapes it."""
    text = text[:MAX_LINE_BYTES]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text[:MAX_LINE_BYTES])


def _cut(line: str, max_bytes: int) -> str:
    encoded = line.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return line
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."


def _encoded_within(max_bytes: int, entries: dict[str, Any]) -> str:
    """The object in JSON; its longest texts are cut until it fits."""
    for name, value in entries.items():
        if isinstance(value, str):
            entries[name] = value[:max_bytes]
    while len(line := json.dumps(entries, default=str)) > max_bytes:
        name, text = max(entries.items(), key=lambda entry: len(json.dumps(entry[1], default=str)))
        text = text if isinstance(text, str) else json.dumps(text, default=str)
        entries[name] = text[: len(text) // 2 - 3] + "..."
    return line


class LineWriter(logging.Handler):
    """Hands lines to a thread that writes them to `stream`, which must not buffer.

    Lines that would wait behind 10,000 others, or cannot be written, are lost, and how many they
    were is said as soon as it can be.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES_WAITING)
        # One thread's each, so that none is counted twice or forgotten: the loggers' (under the
        # handler's lock) and the writer's.
        self._num_refused = 0
        self._num_unwritten = 0
        self._num_told = 0
        self._thread = threading.Thread(target=self._run, name="penstock-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record's line. Never waits, never raises."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._num_refused += 1
        except Exception:
            self.handleError(record)

    # Not `close`: whoever configures Python's logging (Granian does) closes all handlers there are.
    def stop(self) -> None:
        """Write what waits, as far as it can be written soon, and no more."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(max(0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            self._write(line)
            if self._lines.empty():
                self._tell_losses()
        self._tell_losses()

    def _tell_losses(self) -> None:
        lost = self._num_refused + self._num_unwritten - self._num_told
        if lost:
            self._num_told += lost
            record = logging.LogRecord(
                __name__, logging.WARNING, "", 0, "%d lines of the log were lost", (lost,), None
            )
            self._write(self.format(record))

    def _write(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        try:
            while data:
                data = data[self._stream.write(data) :]
        except (OSError, ValueError):  # a full disk, a reader that has gone, a closed file
            self._num_unwritten += 1


@contextlib.contextmanager
def logging_to(stream: BinaryIO, log_format: Literal["text", "json"]) -> Iterator[None]:
    """Have everything that is logged, at INFO and above, written to `stream` (see `unbuffered`)."""
    writer = LineWriter(stream)
    writer.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(writer)
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.removeHandler(writer)
        writer.stop()


def unbuffered(descriptor: int) -> BinaryIO:
    """A stream that writes straight to this file. With a buffer's lock in the hands of a thread
    that nobody reads from, the interpreter could not end."""
    return io.FileIO(descriptor, "w", closefd=False)


def report_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's handler of exceptions: its own prints their words."""
    log.error(
        "a task or callback failed: %s",
        str(context.get("message", "")).partition("\n")[0],
        exc_info=context.get("exception"),
    )
