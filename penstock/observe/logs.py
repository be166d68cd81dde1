"""The server's log: each record is a line of text or a JSON object.

In: Python's log records, with optional `fields`. Out: lines on a stream. Each line is bounded and
escaped, so text from a client cannot end a line, start a new line or control a terminal. A thread
writes the lines, so a slow reader of the log cannot delay the server. For an exception the log
names the class and the places in the code but never the message, which may contain a client's text.
"""

import asyncio
import collections
import contextlib
import io
import json
import logging
import re
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

MAX_LINE_BYTES = 8192
MAX_LINES_WAITING = 10_000
GATHER_S = 0.02
# How long `stop` waits for the last lines.
CLOSE_TIMEOUT_S = 2.0

_PLAIN = re.compile(r"[A-Za-z0-9._:/{}\[\]@+-]+")

log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its line break."""
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
    """Formats a record for people: level, logger, message, then `name=value` for each field.

    The places of an exception follow, each on its own line. They hold only the names of files and
    functions.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a line for each place of an exception."""
        fields = _fields_of(record)
        places = fields.pop("places", [])
        head = f"{record.levelname} {record.name}: {escaped(record.getMessage())}"
        line = " ".join([head, *(f"{name}={_plain(value)}" for name, value in fields.items())])
        line = _cut(line, MAX_LINE_BYTES - 1)
        return "\n".join([line, *(f"    {escaped(place)}" for place in places)])


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the record's fields and those of its exception, in order."""
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fields |= exception_fields(error)
    return fields


def exception_fields(error: BaseException) -> dict[str, Any]:
    """Return an exception's class and its places in the code, innermost last; not its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return {
        "exception": type(error).__name__,
        "places": [f"{each.filename}:{each.lineno} {each.name}" for each in frames[-20:]],
    }


def escaped(text: str) -> str:
    """Return the text with every unprintable character escaped as in JSON."""
    text = text[:MAX_LINE_BYTES]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _plain(value: object) -> str:
    kind = type(value)
    if kind is int or kind is float:
        return repr(value)
    text = value if kind is str else json.dumps(value)
    assert isinstance(text, str)
    return text if _PLAIN.fullmatch(text) else json.dumps(text[:MAX_LINE_BYTES])


def _cut(line: str, max_bytes: int) -> str:
    encoded = line.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return line
    return encoded[: max_bytes - 3].decode("utf-8", "ignore") + "..."


def _encoded_within(max_bytes: int, entries: dict[str, Any]) -> str:
    """Return the entries as JSON, with the longest values cut until the JSON fits."""
    for name, value in entries.items():
        if isinstance(value, str):
            entries[name] = value[:max_bytes]
    while len(line := json.dumps(entries, default=str)) > max_bytes:
        name, text = max(entries.items(), key=lambda entry: len(json.dumps(entry[1], default=str)))
        text = text if isinstance(text, str) else json.dumps(text, default=str)
        entries[name] = text[: len(text) // 2 - 3] + "..."
    return line


class LineWriter(logging.Handler):
    """Passes records to a thread that writes their lines to `stream`, which must not buffer.

    The thread wakes when there is a record, and then takes all that come within 20 ms: waking it
    for each would cost more than the line. A line is lost if 10,000 lines are already waiting or if
    it cannot be written. The log reports the number of lost lines as soon as it can.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        # Text stands for itself.
        self._records: collections.deque[logging.LogRecord | str] = collections.deque()
        self._has_records = threading.Event()
        self._stopping = threading.Event()
        self._is_written = threading.Event()
        # Each counter has one writer, so no count is lost: loggers add to the first (under the
        # handler's lock), the writing thread to the second.
        self._num_refused = 0
        self._num_unwritten = 0
        self._num_reported = 0
        self._thread = threading.Thread(target=self._run, name="penstock-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record. Never waits and never raises."""
        self._queue(record)

    def write_text(self, text: str) -> None:
        """Queue text that is written as it is. Never waits and never raises."""
        with self.lock or contextlib.nullcontext():
            self._queue(text)

    def _queue(self, record: logging.LogRecord | str) -> None:
        if len(self._records) >= MAX_LINES_WAITING:
            self._num_refused += 1
            return
        self._records.append(record)
        if not self._has_records.is_set():
            self._has_records.set()

    def flush(self) -> None:
        """Write the waiting lines. Waits about 2 seconds at most."""
        if not self._thread.is_alive():
            return  # Python flushes every handler at its exit, and there is nobody to wait for
        self._is_written.clear()
        self._has_records.set()
        self._is_written.wait(CLOSE_TIMEOUT_S)

    # Not named `close`: configuring Python's logging, as Granian does, closes every handler.
    def stop(self) -> None:
        """Write the waiting lines and stop the thread. Waits about 2 seconds at most."""
        self._stopping.set()
        self._has_records.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._has_records.wait()
            self._stopping.wait(GATHER_S)
            self._has_records.clear()
            self._write_safely()
        self._write_safely()

    def _write_safely(self) -> None:
        try:
            self._write_all()
        except Exception:  # without this thread there would be no log
            self._num_unwritten += 1
        self._is_written.set()

    def _write_all(self) -> None:
        records = self._records
        while records:
            record = records.popleft()
            if isinstance(record, str):
                self._write(record)
                continue
            try:
                line = self.format(record)
            except Exception:  # a record that cannot be shown costs only itself
                self._num_unwritten += 1
            else:
                self._write(line + "\n")
        self._report_losses()

    def _report_losses(self) -> None:
        lost = self._num_refused + self._num_unwritten - self._num_reported
        if lost:
            self._num_reported += lost
            record = logging.LogRecord(
                __name__, logging.WARNING, "", 0, "%d log lines were lost", (lost,), None
            )
            self._write(self.format(record) + "\n")

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[self._stream.write(data) :]
        except (OSError, ValueError):  # a full disk, a closed pipe or a closed file
            self._num_unwritten += 1


@contextlib.contextmanager
def logging_to(stream: BinaryIO, log_format: Literal["text", "json"]) -> Iterator[LineWriter]:
    """Write every record at INFO and above to `stream`, which must be `unbuffered`.

    The context yields the writer. After it, the same records are shown as before.
    """
    writer = LineWriter(stream)
    writer.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    # No line shows these, and finding them out for each record takes long.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(writer)
    logging.captureWarnings(True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        yield writer
    finally:
        logging.captureWarnings(False)
        root.removeHandler(writer)
        root.setLevel(level)
        writer.stop()


def unbuffered(descriptor: int) -> BinaryIO:
    """Return a stream that writes to a file descriptor without a buffer.

    The interpreter cannot exit while the writing thread holds a buffer's lock, and it holds the
    lock for as long as the reader of the log does not read.
    """
    return io.FileIO(descriptor, "w", closefd=False)


def report_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an event loop's exception without its message, which the default handler would print."""
    log.error(
        "a task or callback failed: %s",
        str(context.get("message", "")).partition("\n")[0],
        exc_info=context.get("exception"),
    )
