"""The checker accepts good histories, and finds the breach of each invariant in bad ones."""

import itertools
from collections.abc import Callable

import pytest

from tests.faults.checker import Rules, judge, judge_server, judge_stream
from tests.faults.history import (
    Abort,
    Attached,
    Detached,
    Ended,
    EngineDid,
    Entry,
    Got,
    Held,
    HeldBytes,
    History,
    How,
    Refused,
    StreamHistory,
    Told,
    Truth,
    numbered,
)

NUM_TOKENS = 6
TRUTH = numbered("apple", length=NUM_TOKENS, max_tokens=100)


def data_of(text: str) -> bytes:
    return b'{"token":"' + text.encode() + b'"}'


class Story:
    """Builds a stream's history, one tick of the clock per entry."""

    def __init__(self, truth: Truth = TRUTH) -> None:
        self.history = StreamHistory("s", truth)
        self._ticks = itertools.count()

    def tick(self) -> float:
        return float(next(self._ticks))

    def add(self, entry: Entry) -> "Story":
        self.history.add(entry)
        return self

    def attach(self, reader: str = "a", after: int = -1) -> "Story":
        return self.add(Attached(self.tick(), reader, after))

    def detach(self, how: How = "whole", reader: str = "a") -> "Story":
        return self.add(Detached(self.tick(), reader, how))

    def get(self, *indexes: int, reader: str = "a", word: str = "apple") -> "Story":
        for index in indexes:
            text = f"{word}:{index} "
            self.add(Got(self.tick(), reader, index, index, text, data_of(text)))
        return self

    def end(
        self,
        reason: str = "stop",
        index: int = NUM_TOKENS,
        *,
        reader: str = "a",
        error: str = "",
        tokens: int | None = None,
        data: bytes = b"",
    ) -> "Story":
        tokens = index if tokens is None else tokens
        data = data or f"{reason} {index}".encode()
        return self.add(Ended(self.tick(), reader, index, index, reason, error, tokens, data))

    def broken(self, rules: Rules | None = None) -> set[str]:
        return judge_stream(self.history, rules).broken()


def whole(reader: str = "a") -> Story:
    return Story().attach(reader).get(*range(6), reader=reader).end(reader=reader).detach()


def test_a_whole_stream_holds() -> None:
    verdict = judge_stream(whole().history)
    assert verdict.holds, verdict
    assert verdict.counts["events"] == 7
    assert verdict.endings == {"stop": 1}


def test_cuts_resumes_late_readers_and_refusals_hold() -> None:
    story = Story().attach().get(0, 1).detach("cut")
    story.add(Refused(story.tick(), "a", 503, "engine_down"))
    story.attach(after=1).detach("cut").attach(after=1).get(2, 3).attach("b").get(0, 1, reader="b")
    story.get(4, 5).end().detach().get(2, 3, 4, 5, reader="b").end(reader="b")
    story.attach("c", after=3).get(4, 5, reader="c").end(reader="c").detach(reader="c")
    story.add(EngineDid(story.tick(), "submitted")).add(EngineDid(story.tick(), "finished"))
    story.add(HeldBytes(story.tick(), "b", 1000)).add(Told(story.tick(), "stop"))
    verdict = judge_stream(story.history)
    assert verdict.holds, verdict
    assert verdict.counts == {
        "streams": 1,
        "readers": 3,
        "responses": 5,
        "resumed": 2,
        "cut": 2,
        "whole": 2,
        "refused": 1,
        "events": 17,
    }


def test_a_cancelled_stream_holds() -> None:
    story = Story().attach().get(0, 1)
    story.add(Abort(story.tick(), "delete")).get(2).end("cancelled", 3).detach()
    story.add(Told(story.tick(), "cancelled"))
    assert story.broken() == set()


def test_a_stream_without_a_reader_holds_if_delete_tells_its_end() -> None:
    story = Story().attach().get(0).detach("left")
    story.add(Abort(story.tick(), "disconnect")).add(Told(story.tick(), "cancelled"))
    assert story.broken() == set()


BROKEN: dict[str, tuple[str, Callable[[], Story]]] = {
    "a token is wrong": (
        "I1",
        lambda: Story(Truth("apple:0 apple:9 ", "stop", 2, "apple")).attach().get(0, 1),
    ),
    "two readers got different bytes": (
        "I1",
        lambda: whole().attach("b").add(Got(50, "b", 0, 0, "apple:0 ", b"{ }")),
    ),
    "a late reader got a wrong token": (
        "I1",
        lambda: (
            whole().attach("b", after=3).add(Got(50, "b", 4, 4, "apple:x ", data_of("apple:x ")))
        ),
    ),
    "a delta is empty": ("I1", lambda: Story().attach().add(Got(50, "a", 0, 0, "", b""))),
    "an event is lost": ("I2", lambda: Story().attach().get(0, 2)),
    "the first event is lost": ("I2", lambda: Story().attach().get(1)),
    "an event is lost at a resume": (
        "I2",
        lambda: Story().attach().get(0).detach("cut").attach(after=0).get(2),
    ),
    "an event comes twice": ("I2", lambda: Story().attach().get(0, 1, 1)),
    "a resume repeats an event": (
        "I2",
        lambda: Story().attach().get(0, 1).detach("cut").attach(after=1).get(1),
    ),
    "events are reordered": ("I2", lambda: Story().attach().get(0, 2, 1, 3)),
    "an event precedes the cursor": ("I2", lambda: whole().attach("b", 3).get(3, reader="b")),
    "the terminal event skips one id": (
        "I2",
        lambda: Story().attach().get(0, 1).end("cancelled", 4),
    ),
    "an id differs from the index": (
        "I2",
        lambda: Story().attach().add(Got(50, "a", 7, 0, "apple:0 ", data_of("apple:0 "))),
    ),
    "two terminal events": ("I3", lambda: whole().end()),
    "two different terminal events": (
        "I3",
        lambda: whole().attach("b", 5).end("length", 6, reader="b"),
    ),
    "a delta after the end": ("I3", lambda: whole().get(6)),
    "a whole body without its end": ("I3", lambda: Story().attach().get(0, 1).detach("whole")),
    "success before the whole text": ("I4", lambda: Story().attach().get(0, 1).end("stop", 2)),
    "success for the wrong reason": ("I4", lambda: Story().attach().get(*range(6)).end("length")),
    "cancelled without a cause": ("I4", lambda: Story().attach().get(0, 1).end("cancelled", 2)),
    "an error without a cause": (
        "I4",
        lambda: Story().attach().get(0).end("error", 1, error="engine_died"),
    ),
    "more tokens counted than made": ("I4", lambda: Story().attach().get(*range(6)).end(tokens=9)),
    "the end is unknown": ("I6", lambda: Story().attach().get(0).detach("cut")),
    "DELETE and the terminal event differ": ("I6", lambda: whole().add(Told(99, "cancelled"))),
    "two DELETEs differ": (
        "I6",
        lambda: Story().attach().add(Told(98, "cancelled")).add(Told(99, "stop")),
    ),
    "a token of another stream": ("I7", lambda: Story().attach().get(0).get(1, word="pear")),
    "the engine still runs an ended stream": ("I8", lambda: whole().add(EngineDid(0, "submitted"))),
    "too many bytes are held for a reader": (
        "I9",
        lambda: whole().add(HeldBytes(50, "a", 300_000)),
    ),
}


@pytest.mark.parametrize(("invariant", "story"), BROKEN.values(), ids=BROKEN)
def test_each_invariant_can_be_broken(invariant: str, story: Callable[[], Story]) -> None:
    assert invariant in story().broken()


def test_tokens_made_after_an_abort_are_counted() -> None:
    def aborted_at(tick: int) -> Story:
        story = whole()
        for each in range(4):
            story.add(EngineDid(30 + each, "token"))
        return story.add(Abort(tick - 0.5, "delete"))

    assert aborted_at(32).broken() == set()
    assert aborted_at(31).broken() == {"I5"}
    assert aborted_at(31).broken(Rules(tokens_after_abort=3)) == set()


def test_lost_duplicated_and_reordered_are_told_apart() -> None:
    def counts(*indexes: int) -> tuple[int, int, int]:
        found = judge_stream(Story().attach().get(*indexes).history).counts
        return found["lost"], found["duplicated"], found["reordered"]

    assert counts(0, 1, 2) == (0, 0, 0)
    assert counts(0, 3) == (2, 0, 0)
    assert counts(0, 1, 0, 1, 2) == (0, 2, 0)
    assert counts(0, 2, 1, 3) == (0, 0, 1)


def test_resources_still_held_after_the_load_break_i8() -> None:
    held = [Held(0, "before", "descriptors", 10), Held(9, "after", "descriptors", 10)]
    assert judge_server(held) == []
    held.append(Held(9, "after", "processes", 1))
    (breach,) = judge_server(held)
    assert (breach.invariant, breach.what) == ("I8", "processes: 0 before, 1 after")
    assert judge_server(held, Rules(slack={"processes": 1})) == []


def test_a_verdict_can_be_read() -> None:
    history = History()
    for name, story in {"good": whole(), "bad": Story().attach().get(0, 2)}.items():
        opened = history.open(name, TRUTH)
        opened.entries += story.history.entries
    said = str(judge(history))
    assert "2 streams (1 stop), 2 readers, 9 events read" in said
    assert "lost 1, duplicated 0, reordered 0" in said
    assert "BROKEN: I2 x1, I6 x1" in said
    assert "I2  bad: reader a, event 2 came instead of 1: 1 lost" in said
    assert "every invariant held" in str(judge_stream(whole().history))


def test_engine_reports_that_precede_the_stream_s_id_are_kept() -> None:
    history = History()
    history.add("s", EngineDid(0, "submitted"))
    history.open("s", TRUTH).add(Told(1, "stop"))
    assert judge(history).broken() == {"I8"}
