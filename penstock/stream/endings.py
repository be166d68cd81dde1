"""Counts and logs streams that leave this server: they have ended, or another replica has them.

In: streams. Out: counts in the meter, and lines in the log. Not known here: who decided the end.
"""

import logging
from typing import Any

from penstock.errors import kind_of
from penstock.events import Failure, TerminalEvent, finish_reason_of
from penstock.observe.meter import Meter
from penstock.stream.stream import Stream

log = logging.getLogger("penstock.stream")


def meter_end(stream: Stream, end: TerminalEvent, meter: Meter) -> None:
    """Count a stream that has ended, its tokens, and why it ended."""
    cause, error_code = finish_reason_of(end), ""
    if stream.client_gone:
        cause = "client_gone"
    elif isinstance(end, Failure):
        error_code = end.code
        if kind_of(end.code).status < 500:  # the request's own fault: no operator is woken
            cause = "refused"
    usage = stream.counted_usage
    if stream.record.owner.key_id:
        meter.usage_of(stream.record.owner.label).add(usage)
    meter.stream_ended(
        cause=cause,
        error_code=error_code,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_time=end.timings.total_time,
    )


def meter_move(stream: Stream, meter: Meter) -> None:
    """Count the tokens of a stream that goes on in another replica, which counts its end."""
    usage = stream.counted_usage
    if stream.record.owner.key_id:
        meter.usage_of(stream.record.owner.label).add(usage)
    meter.stream_moved(usage.prompt_tokens, usage.completion_tokens)


def log_unread(stream: Stream, end: TerminalEvent) -> None:
    """Log the end of a stream that no client of this process was reading then."""
    fields: dict[str, Any] = {
        "stream_id": stream.id,
        "readers": stream.num_readers_ever,
        "prompt_tokens": stream.usage.prompt_tokens,
        "completion_tokens": stream.usage.completion_tokens,
        "finish_reason": finish_reason_of(end),
        "total_s": end.timings.total_time,
    }
    if isinstance(end, Failure):
        fields["error_code"] = end.code
    if stream.record.owner.is_closed:
        fields["owner"] = stream.record.owner.name
    log.info("stream ended unread here", extra={"fields": fields})
