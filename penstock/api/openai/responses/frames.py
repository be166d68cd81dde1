"""Turns one stream into the events and the object of OpenAI's Responses API.

In: the events of a stream. Out: frames of typed events with sequence numbers, or the response
object. The answer is a list of items: reasoning, a message, calls of tools. Each delta adds to the
item that is open, or opens the next one. The sequence numbers are also the ids of the events, so
`starting_after` and `Last-Event-ID` mean the same. Everything depends on the log alone: every
reader gets the same bytes.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.api.dialect import PLACE, Form, around_place
from penstock.api.event_ids import id_line
from penstock.api.openai.objects import chat_logprobs
from penstock.api.openai.responses.items import sealed
from penstock.api.openai.responses.tools import InputText, ShownTool, input_in
from penstock.errors import kind_of
from penstock.events import (
    Delta,
    Event,
    Failure,
    Finish,
    Reasoning,
    TerminalEvent,
    ToolCall,
    Usage,
    num_reasoning_tokens,
)
from penstock.stream.lane import Frames
from penstock.stream.reader import Batch
from penstock.stream.stream import Stream

_encode = msgspec.json.encode
_PREFIXES = {
    "reasoning": "rs",
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
}
_CODES = {"prompt_too_long": "context_length_exceeded"}

Fields = dict[str, Any]
"""An event without its sequence number."""


def response_id_of(stream_id: str) -> str:
    """Return the id of the response that a stream generates."""
    return f"resp_{stream_id}"


def stream_id_of(response_id: str) -> str:
    """Return the id of the stream that generates a response."""
    return response_id.removeprefix("resp_")


class ResponseForm(Form, frozen=True):
    """How a stream is shown as a response.

    `shown` has the fields of the response object that the request decides. `tools` has the tools
    whose calls are shown under another name than the model's. With `encrypts`, reasoning also comes
    in the form in which clients send it back.
    """

    stream_id: str
    created_at: int
    shown: dict[str, Any]
    tools: dict[str, ShownTool] = msgspec.field(default_factory=dict)
    encrypts: bool = False
    has_logprobs: bool = False

    dialect = "openai.responses"

    def framer(self, streams: Sequence[Stream], *, with_ids: bool) -> "ResponseFrames":
        """Return the framer for the stream from its beginning."""
        return ResponseFrames(self, streams[0], with_ids=with_ids)

    def num_events(self, stream: Stream) -> int:
        """Return how many events there are so far."""
        return self.num_before(stream, len(stream.log))

    def num_before(self, stream: Stream, cursor: int) -> int:
        """Return how many events with ids the log's first `cursor` events make."""
        frames = ResponseFrames(self, stream)
        for event in stream.log.after(0, cursor):
            frames.skip(event)
        return frames.num_sent

    def resume(self, stream: Stream, first: int) -> tuple[int, "ResponseFrames"]:
        """Return the cursor and the framer for the events from number `first` on."""
        counting = ResponseFrames(self, stream)
        cursor = 0
        for event in stream.log.after(0):
            counting.skip(event)
            if counting.num_sent > first:
                break
            cursor += 1
        frames = ResponseFrames(self, stream, with_ids=True, first=first)
        for event in stream.log.after(0, cursor):
            frames.skip(event)
        return cursor, frames

    def whole(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the response object of a stream that has ended."""
        return self.so_far(streams)

    def so_far(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Return the response object as it is now."""
        stream = streams[0]
        output = Output(self)
        for event in stream.log.after(0):
            if isinstance(event, Delta):
                output.add(event)
        if stream.ended is None:
            status = "queued" if stream.phase == "queued" else "in_progress"
            return self.response(status, output.so_far())
        output.close(complete=_is_complete(stream.ended))
        return self.ended(stream, stream.ended, output)

    def ended(self, stream: Stream, end: TerminalEvent, output: "Output") -> dict[str, Any]:
        """Return the response object of a stream that ended so."""
        usage = _usage(stream.usage, num_reasoning_tokens(stream.log.after(0)))
        status, fields = _ending(end)
        if status == "completed":
            fields = {"completed_at": self.created_at + int(end.timings.total_time)}
        if isinstance(end, Finish) and end.late_notes:
            fields = {**fields, "ignored": end.late_notes}
        return self.response(status, output.items) | fields | {"usage": usage}

    def response(self, status: str, output: list[Any]) -> dict[str, Any]:
        """Return a response object in this status."""
        return {
            "id": response_id_of(self.stream_id),
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self.shown,
            "output": output,
            "usage": None,
        }


class Output:
    """The items of a response. The last one may be open: its text is still coming."""

    def __init__(self, form: ResponseForm) -> None:
        self.items: list[dict[str, Any]] = []
        self.text: list[str] = []
        """The pieces of the open item's text."""
        self._form = form
        self._kind = ""
        """The type of the open item."""
        self._logprobs: list[Any] = []
        self._input = InputText()

    def text_delta(self, text: str) -> Fields | None:
        """Return the event of a plain delta of the open message, None if no message is open."""
        if self._kind != "message":
            return None
        kind = "response.output_text.delta"
        return self._event(kind, content_index=0, delta=text, logprobs=[])

    def so_far(self) -> list[dict[str, Any]]:
        """Return the items with the text that has come."""
        if not self._kind:
            return self.items
        return [*self.items[:-1], self.items[-1] | self._content()]

    def add(self, delta: Delta) -> list[Fields]:
        """Return the events of a delta."""
        if isinstance(delta, ToolCall):
            return self._add_call(delta)
        kind = "reasoning" if isinstance(delta, Reasoning) else "message"
        events = [] if self._kind == kind else [*self.close(), *self._open(kind)]
        return [*events, self._add_text(delta)]

    def close(self, *, complete: bool = True) -> list[Fields]:
        """Return the events that end the open item, if there is one."""
        if not self._kind:
            return []
        content = self._content()
        self.items[-1] |= {**content, "status": "completed" if complete else "incomplete"}
        events = self._done_events(content)
        self._kind = ""
        return [*events, self._item_event("response.output_item.done")]

    def _open(self, kind: str, **fields: Any) -> list[Fields]:
        index = len(self.items)
        item_id = f"{_PREFIXES[kind]}_{self._form.stream_id}_{index}"
        item: dict[str, Any] = {"type": kind, "id": item_id, "status": "in_progress", **fields}
        has_parts = kind in ("message", "reasoning")
        if has_parts:
            item["content"] = []
            name, value = ("role", "assistant") if kind == "message" else ("summary", [])
            item[name] = value
        self.items.append(item)
        self._kind, self.text, self._logprobs = kind, [], []
        events = [self._item_event("response.output_item.added")]
        if has_parts:
            (part,) = self._content()["content"]
            events.append(self._event("response.content_part.added", content_index=0, part=part))
        return events

    def _add_text(self, delta: Delta) -> Fields:
        self.text.append(delta.text)
        if self._kind == "reasoning":
            return self._event("response.reasoning_text.delta", content_index=0, delta=delta.text)
        logprobs = chat_logprobs([delta])["content"] if self._form.has_logprobs else []
        self._logprobs += logprobs
        kind = "response.output_text.delta"
        return self._event(kind, content_index=0, delta=delta.text, logprobs=logprobs)

    def _add_call(self, part: ToolCall) -> list[Fields]:
        events: list[Fields] = []
        if part.id:
            events += [*self.close(), *self._open_call(part)]
        if not part.text:
            return events
        self.text.append(part.text)
        if self._kind == "function_call":
            return [*events, self._event("response.function_call_arguments.delta", delta=part.text)]
        if text := self._input.feed(part.text):
            events.append(self._event("response.custom_tool_call_input.delta", delta=text))
        return events

    def _open_call(self, part: ToolCall) -> list[Fields]:
        tool = self._form.tools.get(part.name, ShownTool(part.name))
        fields = {"call_id": part.id, "name": tool.name}
        if tool.namespace:
            fields["namespace"] = tool.namespace
        if tool.is_custom:
            self._input = InputText()
            return self._open("custom_tool_call", **fields, input="")
        return self._open("function_call", **fields, arguments="")

    def _content(self) -> dict[str, Any]:
        """Return the fields of the open item that hold its text so far."""
        text = "".join(self.text)
        if self._kind == "function_call":
            return {"arguments": text}
        if self._kind == "custom_tool_call":
            return {"input": input_in(text)}
        if self._kind == "message":
            logprobs = list(self._logprobs)
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
            return {"content": [part]}
        content: dict[str, Any] = {"content": [{"type": "reasoning_text", "text": text}]}
        if self._form.encrypts:
            content["encrypted_content"] = sealed(text)
        return content

    def _done_events(self, content: dict[str, Any]) -> list[Fields]:
        if self._kind == "function_call":
            return [self._event("response.function_call_arguments.done", **content)]
        if self._kind == "custom_tool_call":
            return [self._event("response.custom_tool_call_input.done", **content)]
        (part,) = content["content"]
        if self._kind == "reasoning":
            done = self._event("response.reasoning_text.done", content_index=0, text=part["text"])
        else:
            fields = {"text": part["text"], "logprobs": part["logprobs"]}
            done = self._event("response.output_text.done", content_index=0, **fields)
        return [done, self._event("response.content_part.done", content_index=0, part=part)]

    def _event(self, kind: str, **fields: Any) -> Fields:
        index = len(self.items) - 1
        return {"type": kind, "item_id": self.items[index]["id"], "output_index": index, **fields}

    def _item_event(self, kind: str) -> Fields:
        index = len(self.items) - 1
        return {"type": kind, "output_index": index, "item": dict(self.items[index])}


class ResponseFrames:
    """Frames a stream for one reader: each event of the log becomes one or several events.

    `with_ids` gives each frame an id. Frames with numbers below `first` are left out.
    """

    def __init__(
        self, form: ResponseForm, stream: Stream, *, with_ids: bool = False, first: int = 0
    ) -> None:
        self._form = form
        self._stream = stream
        self._id_line = id_line(stream.id) if with_ids else b""
        self._first = first
        self._output = Output(form)
        self._ends = (b"", b"")
        self.num_sent = 0
        """The sequence number of the next event."""

    def frame(self, batches: list[Batch]) -> bytes:
        """Return the frames of these events, in one piece."""
        parts: list[bytes] = []
        for _, events in batches:
            for event in events:
                for fields in self._events_of(event):
                    if self.num_sent >= self._first:
                        parts.append(self._frame(fields))
                    self.num_sent += 1
        return b"".join(parts)

    def skip(self, event: Event) -> None:
        """Count the frames of an event as sent."""
        self.num_sent += len(self._events_of(event))

    def straight(self) -> Frames | None:
        """Return how the next plain deltas are framed, None if more than the text varies."""
        fields = None if self._form.has_logprobs else self._output.text_delta(PLACE)
        if fields is None:
            return None
        before, after = around_place(self._frame(fields, number=0))
        # The number comes last.
        self._ends = before.partition(b"event:")[2], after.rpartition(b"0}")[0]
        return self._straight_frame

    def _straight_frame(self, text: str) -> bytes:
        number = self.num_sent
        self.num_sent = number + 1
        self._output.text.append(text)
        before, after = self._ends
        event_id = self._id_line % number if self._id_line else b""
        return b"%bevent:%b%b%b%d}\n\n" % (event_id, before, _encode(text), after, number)

    def _events_of(self, event: Event) -> list[Fields]:
        events: list[Fields] = []
        if not self.num_sent:
            begun = self._form.response("in_progress", [])
            events += [
                {"type": "response.created", "response": begun},
                {"type": "response.in_progress", "response": begun},
            ]
        if isinstance(event, Delta):
            return events + self._output.add(event)
        events += self._output.close(complete=_is_complete(event))
        response = self._form.ended(self._stream, event, self._output)
        return [*events, {"type": f"response.{_terminal_of(event)}", "response": response}]

    def _frame(self, fields: Fields, number: int | None = None) -> bytes:
        number = self.num_sent if number is None else number
        data = _encode({**fields, "sequence_number": number})
        event_id = self._id_line % number if self._id_line else b""
        return b"%bevent: %b\ndata: %b\n\n" % (event_id, fields["type"].encode(), data)


def _is_complete(end: TerminalEvent) -> bool:
    return isinstance(end, Finish) and end.reason == "stop"


def _terminal_of(end: TerminalEvent) -> str:
    """Return the last word of the terminal event's type."""
    if isinstance(end, Failure):
        return "failed"
    return "completed" if end.reason == "stop" else "incomplete"


def _ending(end: TerminalEvent) -> tuple[str, dict[str, Any]]:
    """Return the status of a response that ended so, and the fields that say why.

    OpenAI has no word for a response whose time was up: it is incomplete without a reason.
    `retry_safe` and the type of an error are ours.
    """
    if isinstance(end, Failure):
        is_ours = kind_of(end.code).status >= 500
        code = _CODES.get(end.code, "server_error" if is_ours else "invalid_prompt")
        error = {"code": code, "message": end.message, "type": end.code}
        return "failed", {"error": {**error, "retry_safe": end.retry_safe}}
    if end.reason == "stop":
        return "completed", {}
    if end.reason == "cancelled":
        return "cancelled", {}
    reason = "max_output_tokens" if end.reason == "length" else None
    return "incomplete", {"incomplete_details": {"reason": reason}}


def _usage(usage: Usage, num_reasoning: int) -> dict[str, Any]:
    details = {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0}
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": details,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": usage.total_tokens,
    }
