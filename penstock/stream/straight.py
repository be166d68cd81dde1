"""The straight path: one loop from an engine's batch to the sockets.

Nearly every token of a server takes it: plain text of a stream whose only reader has seen
everything before it. For such a stream a `Lane` is open, and the loop appends the event to the log,
frames it and gives it to the kernel. Anything else takes the general path (`Stream`, `Reader`,
`BodyWriter`), which is the truth: both have the same results, and a test compares them
(tests/stream/test_straight.py).

The loop is long on purpose: each call in it would cost every token a tenth of a microsecond.
"""

import logging
import os
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from penstock.engine.protocol import Addition, LosableSink, Tell
from penstock.events import Delta
from penstock.observe.meter import Meter
from penstock.stream.stream import Stream

log = logging.getLogger(__name__)

# The first lines of chunks of common sizes. Formatting one costs a tenth of a microsecond.
NUM_LINES = 1024
SIZE_LINES = [b"%x\r\n" % size for size in range(NUM_LINES)]


class StraightPath:
    """Delivers batches to streams (see `engine.protocol.Deliver`), and counts in `meter`."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def deliver(self, batch: Sequence[Any], sinks: Mapping[str, LosableSink], tell: Tell) -> None:
        """Deliver a batch, in order."""
        streams = cast("Mapping[str, Stream]", sinks)
        meter = self._meter
        find = streams.get
        write, monotonic = os.write, time.monotonic
        encode, join = msgspec.json.encode, b"".join
        bounds = meter.gap.bounds  # both histograms of gaps have the same bounds
        engine_gaps, gaps = meter.engine_gap.counts, meter.gap.counts
        delays, delay_bounds = meter.delivery.counts, meter.delivery.bounds
        engine_gap_sum = gap_sum = delay_sum = 0.0
        num_sent = 0
        arrived = monotonic()
        # Nearly all streams had their last delta in the same batch, so the gap is the same.
        last_arrival = gap_before = -1.0
        gap_bucket = 0
        for message in batch:
            try:
                if message.__class__ is not Addition:
                    tell(message)
                    continue
                stream = find(message.request_id)
                if stream is None:
                    continue
                piece, num_tokens, ids = message.piece, message.num_tokens, message.token_ids
                lane = stream.lane
                if (
                    lane is None
                    or (descriptor := lane.peer.descriptor) < 0
                    or not piece
                    or piece.__class__ is not str
                    or len(ids) != num_tokens
                    or message.logprobs
                ):
                    stream.delta(piece, num_tokens, ids, message.logprobs)
                    continue
                lane.num_tokens += num_tokens
                lane.generated.extend(ids)
                lane.events.append(Delta(piece, num_tokens))
                lane.cursor += 1
                if lane.logged_at != last_arrival:
                    last_arrival = lane.logged_at
                    gap_before = arrived - last_arrival
                    gap_bucket = bisect_left(bounds, gap_before)
                lane.logged_at = arrived
                engine_gaps[gap_bucket] += 1
                engine_gap_sum += gap_before
                if lane.before:
                    text = encode(piece)
                    size = lane.size + len(text)
                    line = SIZE_LINES[size] if size < NUM_LINES else b"%x\r\n" % size
                    data = join((line, lane.before, text, lane.after))
                else:
                    frame = lane.frame(piece)
                    data = b"%x\r\n%b\r\n" % (len(frame), frame)
                try:
                    num_written = write(descriptor, data)
                except OSError:  # full or broken: the transport finds out
                    num_written = 0
                if num_written != len(data) and not lane.peer.write_rest(data[num_written:]):
                    lane.on_block(arrived)
                    continue
                taken = monotonic()
                num_sent += 1
                delay = taken - arrived
                delays[bisect_left(delay_bounds, delay)] += 1
                delay_sum += delay
                if last := lane.taken_at:
                    gap = taken - last
                    gaps[bisect_left(bounds, gap)] += 1
                    gap_sum += gap
                lane.taken_at = taken
            except Exception:  # a bug with one stream must not reach the others
                log.exception("a message from the engine could not be handled")
        if num_sent:
            meter.num_events_sent += num_sent
            meter.delivery.add_to_sum(delay_sum)
            meter.engine_gap.add_to_sum(engine_gap_sum)
            meter.gap.add_to_sum(gap_sum)
