"""When a stream's steps happened: its figures for the terminal event and the metrics."""

import time

from penstock.events import Timings
from penstock.observe.meter import Meter


class StreamTimer:
    """Notes the times of one stream, on the monotonic clock, in seconds; 0.0 means not yet."""

    __slots__ = ("_meter", "_started_at", "began", "first_delta_at", "last_delta_at", "note_gap")

    def __init__(self, meter: Meter) -> None:
        self.began = time.monotonic()
        """When the stream was admitted."""
        self._meter = meter
        self.note_gap = meter.engine_gap.add
        """Counts the time between two deltas."""
        self._started_at = 0.0
        self.first_delta_at = 0.0
        self.last_delta_at = 0.0

    def set_age(self, seconds: float) -> None:
        """Note how many seconds ago the stream was admitted, perhaps to another server."""
        self.began = time.monotonic() - seconds

    def start(self) -> None:
        """Note that the request has a slot. Only the first call counts."""
        if not self._started_at:
            self._started_at = time.monotonic()
            self._meter.stream_delayed(self._started_at - self.began)

    def first_delta(self, now: float) -> None:
        """Note that the first delta enters the log."""
        self.first_delta_at = now
        queue_time = (self._started_at or now) - self.began
        self._meter.first_delta(queue_time, now - self.began)

    def leave_queue(self, timings: Timings) -> None:
        """Note that a stream ended; if it never had a slot, its whole life was queue time."""
        if not self._started_at:
            self._meter.stream_delayed(timings.queue_time)

    def timings(self, completion_tokens: int) -> Timings:
        """Return the stream's figures as of now."""
        now = time.monotonic()
        decode_time = self.last_delta_at - self.first_delta_at
        return Timings(
            queue_time=round((self._started_at or now) - self.began, 6),
            time_to_first_token=(
                round(self.first_delta_at - self.began, 6) if self.first_delta_at else None
            ),
            total_time=round(now - self.began, 6),
            tokens_per_second=(
                round((completion_tokens - 1) / decode_time, 3) if decode_time else None
            ),
        )
