"""The record of a stream survives encoding, and another process continues the stream from it."""

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.api.dialect import Form
from penstock.api.native.frames import NativeForm
from penstock.api.openai.frames import ChatForm, CompletionForm
from penstock.events import TokenLogprob
from penstock.request import Message, Request, Sampling, ToolUse, UnnamedTokens
from penstock.stream.entries import FORMAT_VERSION, Header
from penstock.stream.quotas import Owner, OwnerLimits
from penstock.stream.reader import Reader
from penstock.stream.record import ChoiceGroup, SavedForm, StreamRecord
from penstock.stream.registry import Streams
from tests.support.scripted import ScriptedEngine, ask

ROOT = Path(__file__).parents[2]
FORMS: list[type[Form]] = [NativeForm, ChatForm, CompletionForm]

HEADER = msgspec.to_builtins(Header(StreamRecord(ask("a")), ""))

names = st.text(max_size=6)
numbers = st.integers(0, 2**63 - 1)
floats = st.floats(allow_nan=False)


def tuples(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


requests = st.builds(
    Request,
    id=names,
    max_tokens=numbers,
    prompt=st.none() | names,
    messages=st.none()
    | tuples(
        st.builds(Message, names, names, names, tuples(st.builds(ToolUse, names, names, names)))
    ),
    sampling=st.builds(
        Sampling,
        floats,
        floats,
        numbers,
        st.none() | numbers,
        floats,
        floats,
        tuples(st.tuples(numbers, floats)),
    ),
    stop=tuples(names),
    must_fit=st.booleans(),
    top_logprobs=st.none() | numbers,
    json_schema=st.none() | names,
    tools=st.none() | names,
    tool_call_required=st.booleans(),
    parallel_calls=st.booleans(),
    separate_reasoning=st.booleans(),
    reasoning_effort=st.none() | names,
    prompt_ids=st.none() | tuples(numbers),
    generated=tuples(numbers | st.builds(UnnamedTokens, names, numbers)),
)
maybe_numbers = st.none() | numbers
owners = st.builds(
    Owner,
    names,
    st.builds(OwnerLimits, maybe_numbers, maybe_numbers, maybe_numbers, maybe_numbers),
    st.booleans(),
    st.booleans(),
)
openai_fields: dict[str, st.SearchStrategy[Any]] = {
    "id": names,
    "created": numbers,
    "model": names,
    "include_usage": st.booleans(),
    "continuous_usage": st.booleans(),
    "has_logprobs": st.booleans(),
    "echoes": tuples(names),
    "num_per_prompt": numbers,
}
forms: st.SearchStrategy[Form] = st.one_of(
    st.builds(NativeForm),
    st.builds(ChatForm, **openai_fields),
    st.builds(CompletionForm, **openai_fields),
)
records = st.builds(
    StreamRecord,
    request=requests,
    owner=owners,
    resumable=st.booleans(),
    timeout=st.none() | floats,
    form=forms.map(Form.save),
    choices=st.none() | st.builds(ChoiceGroup, names, numbers, numbers),
    opened_at=floats,
    token_secret=st.binary(max_size=32),
)


def stored(record: StreamRecord) -> StreamRecord:
    """Return what another process reads of a record."""
    return Header.decode(Header(record, "").encode()).record


@given(records)
def test_a_record_survives_encoding_exactly(record: StreamRecord) -> None:
    assert stored(record) == record


@given(forms)
def test_a_form_survives_saving_exactly(form: Form) -> None:
    record = StreamRecord(ask("a"), form=form.save())
    saved = stored(record).form
    assert saved.dialect == form.dialect
    assert type(form).load(saved) == form


def test_a_header_of_another_format_is_refused_with_both_formats() -> None:
    newer = Header(StreamRecord(ask("a")), "", FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match="log has format 2; this server reads 1"):
        Header.decode(newer.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"no record",
        Header(StreamRecord(ask("a")), "").encode()[:-1],
        Header(StreamRecord(ask("a")), "").encode() + b"\0",
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode({"version": FORMAT_VERSION}),
        msgspec.msgpack.encode({**HEADER, "record": {"request": {"id": 5}}}),
        msgspec.msgpack.encode({**HEADER, "version": "1"}),
        msgspec.msgpack.encode({name: HEADER[name] for name in ("record", "model")}),
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Header.decode(data)


@given(st.binary(max_size=40))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Header.decode(data)


def test_options_of_another_dialect_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        ChatForm.load(SavedForm("openai.chat", {"id": "x"}))


# Continuing in another process.

SHOWN: dict[str, Any] = {"id": "x", "created": 5, "model": "rill"}
USAGE: dict[str, Any] = {"include_usage": True, "continuous_usage": True}


def events_after(record: StreamRecord, first: int) -> list[bytes]:
    """Open a stream with this record, let its engine generate, and resume it at event `first`.

    Returns the frames, without the native API's timings.
    """

    async def run() -> bytes:
        engine = ScriptedEngine()
        streams = Streams([engine])
        stream = streams.open(record)
        sink = engine.sinks[record.id]
        sink.accepted((1, 2))
        sink.started()
        for text in ("one", " two", " thrée", "\n4"):
            logprobs = (TokenLogprob(text.encode(), -0.5, ((b"x", -1.5),)),)
            sink.delta(text, 1, (7,), logprobs if record.request.top_logprobs else ())
        sink.finish("stop", 5)
        found = streams.find(record.id, record.owner)
        form = next(each for each in FORMS if each.dialect == record.form.dialect)
        cursor, framer = form.load(record.form).resume(found, first)
        reader = Reader(stream, cursor=cursor)
        frames = b""
        while not reader.is_done:
            frames += framer.frame(reader.take())
        reader.close()
        return frames

    frames = asyncio.run(run()).split(b"\n\n")
    return [frame.partition(b',"timings"')[0] for frame in frames]


FIRSTS = (0, 2, 4)


def continue_in_this_process() -> None:
    """Print the frames for each record on stdin. The test's second process runs this."""
    for line in sys.stdin:
        record = Header.decode(bytes.fromhex(line)).record
        for first in FIRSTS:
            print(b"\0".join(events_after(record, first)).hex())


def frames_of_another_process(records: Sequence[StreamRecord]) -> list[list[bytes]]:
    result = subprocess.run(
        [sys.executable, "-c", f"import {__name__} as test; test.continue_in_this_process()"],
        input="".join(Header(record, "").encode().hex() + "\n" for record in records),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [bytes.fromhex(line).split(b"\0") for line in result.stdout.split()]


def test_a_record_is_enough_for_another_process_to_continue_the_stream() -> None:
    shown: list[tuple[Form, int | None]] = [
        (NativeForm(), None),
        (ChatForm(**SHOWN), None),
        (ChatForm(**SHOWN, **USAGE, has_logprobs=True), 1),
        (CompletionForm(**SHOWN, **USAGE, has_logprobs=True, echoes=("echo",)), 1),
    ]
    records = []
    for form, top_logprobs in shown:
        request = msgspec.structs.replace(ask("a"), stop=("never",), top_logprobs=top_logprobs)
        owner = Owner("key alice", is_closed=True)
        records.append(StreamRecord(request, owner, resumable=True, form=form.save()))
    here = [events_after(record, first) for record in records for first in FIRSTS]
    for number in range(len(records)):
        whole, rest, last = here[3 * number : 3 * number + 3]
        assert len(whole) >= 6
        assert (rest, last) == (whole[2:], whole[4:])
    assert frames_of_another_process(records) == here
