"""One stream, as the live view shows it.

In: a stream, looked at a few times a second. Out: its row, and whether the row has changed. Not
known here: the other streams, who looks.
"""

import time
from typing import Literal

import msgspec

from penstock.stream.stream import Stream

State = Literal[
    "queued",
    "prefill",
    "running",
    "stalled",
    "cut",
    "resumed",
    "restarting",
    "waiting",
    "continuing",
    "ended",
    "moved",
]

STALLED_AFTER_S = 2.0
"""A running stream that got no token for so long is stalled."""
RESUMED_FOR_S = 2.0
"""How long a stream is called resumed after a reader has come back."""
RATE_EVERY_S = 1.0
"""A rate is measured over at least so many seconds."""
# The sizes of so many events tell how large the others are that a reader is behind.
NUM_WEIGHED = 64


class Row(msgspec.Struct, omit_defaults=True):
    """A stream. Fields with these defaults are left out of the JSON.

    docs/live.md says what each field means, and in which unit it is.
    """

    id: str
    opened: float
    state: State
    key: str = ""
    model: str = ""
    resumable: bool = False
    since: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0
    max_tokens: int = 0
    rate: float = 0.0
    lag: int = 0
    lag_bytes: int = 0
    place: int = 0
    eta: float | None = None
    readers: int = 0
    resumes: int = 0
    reason: str = ""


class Followed:
    """A stream that is followed while somebody looks. `changed_at` is the last change's tick."""

    __slots__ = (
        "_measured_at",
        "_measured_tokens",
        "_resumed_until",
        "changed_at",
        "row",
        "stream",
    )

    def __init__(self, stream: Stream, model: str, now: float, tick: int) -> None:
        owner, request = stream.record.owner, stream.record.request
        self.stream = stream
        self.row = Row(
            stream.id,
            round(time.time() - stream.age, 3),
            "queued",
            key=owner.label if owner.key_id else "",
            model=model,
            resumable=stream.resumable,
            max_tokens=request.max_tokens if stream.record.has_limit else 0,
            resumes=max(0, stream.num_readers_ever - 1),
        )
        self.changed_at = tick
        self._measured_at = now
        self._measured_tokens = stream.num_tokens
        self._resumed_until = 0.0

    def look(self, now: float, tick: int, *, engine_is_up: bool) -> None:
        """Bring the row up to date. `now` is on the monotonic clock."""
        row, stream = self.row, self.stream
        num_tokens = stream.num_tokens
        has_changed = num_tokens != row.tokens
        row.tokens = num_tokens
        if now - self._measured_at >= RATE_EVERY_S:
            has_changed = self._measure(now, num_tokens) or has_changed
        if stream.lane is None or row.state != "running" or not engine_is_up:
            has_changed = self._look_closely(now, engine_is_up=engine_is_up) or has_changed
        elif now - stream.lane.logged_at > STALLED_AFTER_S:
            self._enter("stalled", now - stream.lane.logged_at)
            has_changed = True
        if has_changed:
            self.changed_at = tick

    def end(self, reason: str | None, tick: int) -> None:
        """Note how the stream ended; without a reason another server has it now."""
        self._enter("moved" if reason is None else "ended")
        row = self.row
        row.reason = reason or ""
        row.tokens = max(row.tokens, self.stream.num_tokens)
        row.rate, row.lag, row.lag_bytes, row.place, row.eta, row.readers = 0.0, 0, 0, 0, None, 0
        self.changed_at = tick

    def _look_closely(self, now: float, *, engine_is_up: bool) -> bool:
        """Look at everything that a stream on the straight path does not change."""
        row, stream = self.row, self.stream
        before = (row.state, row.lag, row.lag_bytes, row.place, row.eta, row.readers, row.resumes)
        row.prompt_tokens = row.prompt_tokens or stream.usage.prompt_tokens
        row.readers = stream.num_readers
        num_resumes = max(0, stream.num_readers_ever - 1)
        if num_resumes > row.resumes:
            self._resumed_until = now + RESUMED_FOR_S
        row.resumes = num_resumes
        row.lag = stream.greatest_lag()
        row.lag_bytes = _bytes_behind(stream, row.lag)
        place = stream.place if stream.phase == "queued" else None
        row.place, row.eta = (0, None) if place is None else (place.position, place.eta)
        state, seconds = self._state(now, engine_is_up=engine_is_up)
        if state != row.state or not row.since:
            self._enter(state, seconds)
        now_is = (row.state, row.lag, row.lag_bytes, row.place, row.eta, row.readers, row.resumes)
        return now_is != before

    def _state(self, now: float, *, engine_is_up: bool) -> tuple[State, float]:
        """Return the state, and the seconds since it began as far as the stream itself tells."""
        stream = self.stream
        if stream.phase == "queued":
            return "queued", 0.0
        if not engine_is_up:
            return "restarting", 0.0
        if stream.trouble is not None and stream.trouble.state in ("waiting", "continuing"):
            return stream.trouble.state, 0.0
        if not stream.num_readers:
            return "cut", 0.0
        if now < self._resumed_until:
            return "resumed", 0.0
        if not stream.last_delta_at:
            return "prefill", 0.0
        silent = now - stream.last_delta_at
        return ("stalled", silent) if silent > STALLED_AFTER_S else ("running", 0.0)

    def _enter(self, state: State, seconds: float = 0.0) -> None:
        self.row.state = state
        self.row.since = round(time.time() - seconds, 3)

    def _measure(self, now: float, num_tokens: int) -> bool:
        rate = round((num_tokens - self._measured_tokens) / (now - self._measured_at), 1)
        self._measured_at, self._measured_tokens = now, num_tokens
        has_changed = rate != self.row.rate
        self.row.rate = rate
        return has_changed


def _bytes_behind(stream: Stream, lag: int) -> int:
    """Return about how many bytes of text a reader is behind that is `lag` events behind."""
    if not lag:
        return 0
    events = stream.log.after(len(stream.log) - lag, NUM_WEIGHED)
    texts = [len(getattr(event, "text", "").encode()) for event in events]
    return sum(texts) * lag // len(texts)
