"""The figures of a run, computed from its answers. Pure.

In: answers and the duration of the run. Out: `Figures`. Not known here: sockets, clocks, output.

Percentiles cover only finished answers. A percentile is a measured value: the 99th is the smallest
value that 99 % of the values do not exceed. Token counts come only from the server's usage. A rate
is over the whole run, from its start to the end of the last answer.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from penstock.bench.answer import UNFINISHED, MeasuredAnswer

MAX_CPU = 0.9
MAX_LAG_S = 0.02
MAX_LATE_S = 0.02


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles, maximum, mean and number of some values, in the unit of the values."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    count: int


class Goodput(msgspec.Struct, frozen=True):
    """How many requests kept to every limit, of all that the user did not abandon.

    `share` is the good requests' part of them, from 0 to 1.
    """

    limits_s: dict[str, float]
    good: int
    share: float
    requests_per_second: float


class ClientFigures(msgspec.Struct, frozen=True):
    """How well the client kept up, and the reasons if it was the bottleneck.

    `cpu` and `peak_cpu` are shares of a core: over the run, and in the busiest second. `late_s`:
    how long after it was due a request began (open loop only).
    """

    cpu: float
    peak_cpu: float
    loop_lag_s: Percentiles | None
    late_s: Percentiles | None
    was_bottleneck: bool
    reasons: list[str]


class Figures(msgspec.Struct, frozen=True):
    """The figures of one run. Times in seconds.

    `tokens_per_second` and `prompt_tokens_per_second` are None if any answer came without usage;
    `num_without_usage` counts these answers. `itl_s` is the time between consecutive events with
    text. `tpot_s` is the time per token after the first event, one value per answer.
    """

    seconds: float
    num_requests: int
    num_finished: int
    num_unfinished: int
    num_without_text: int
    num_without_usage: int
    max_in_flight: int
    errors: dict[str, int]
    messages: dict[str, str]
    requests_per_second: float
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None
    completion_tokens: Percentiles | None
    prompt_tokens: Percentiles | None
    events_per_second: float
    ttft_s: Percentiles | None
    itl_s: Percentiles | None
    tpot_s: Percentiles | None
    e2e_s: Percentiles | None
    goodput: Goodput | None
    client: ClientFigures


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """Return the percentiles of some values, None if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None

    def at(percent: int) -> float:
        return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]

    mean = math.fsum(ordered) / len(ordered)
    return Percentiles(at(50), at(90), at(95), at(99), ordered[-1], mean, len(ordered))


def figures(
    answers: Sequence[MeasuredAnswer],
    seconds: float,
    client: ClientFigures,
    *,
    max_in_flight: int = 0,
    limits_s: dict[str, float] | None = None,
) -> Figures:
    """Return the figures of a run that lasted `seconds`.

    `limits_s`: the limits for goodput, in seconds, by name (ttft, itl, e2e).
    """
    finished = [answer for answer in answers if answer.has_finished]
    failed = [each for each in answers if each.failure not in (None, UNFINISHED)]
    usages = [answer.usage for answer in finished if answer.usage is not None]
    has_usage = bool(usages) and len(usages) == len(finished)
    completion = [usage.completion_tokens for usage in usages]
    prompt = [usage.prompt_tokens for usage in usages]
    num_events = sum(len(answer.arrivals) for answer in finished)
    return Figures(
        seconds=seconds,
        num_requests=len(answers),
        num_finished=len(finished),
        num_unfinished=sum(answer.failure == UNFINISHED for answer in answers),
        num_without_text=sum(not answer.arrivals for answer in finished),
        num_without_usage=len(finished) - len(usages),
        max_in_flight=max_in_flight,
        errors=dict(Counter(str(answer.failure) for answer in failed).most_common()),
        messages={str(each.failure): each.message for each in reversed(failed) if each.message},
        requests_per_second=_rate(len(finished), seconds),
        tokens_per_second=_rate(sum(completion), seconds) if has_usage else None,
        prompt_tokens_per_second=_rate(sum(prompt), seconds) if has_usage else None,
        completion_tokens=percentiles(completion),
        prompt_tokens=percentiles(prompt),
        events_per_second=_rate(num_events, seconds),
        ttft_s=percentiles(_known(answer.ttft_s for answer in finished)),
        itl_s=percentiles(gap for answer in finished for gap in answer.gaps_s),
        tpot_s=percentiles(_known(answer.tpot_s for answer in finished)),
        e2e_s=percentiles(_known(answer.e2e_s for answer in finished)),
        goodput=None if limits_s is None else goodput(answers, seconds, limits_s),
        client=client,
    )


def goodput(
    answers: Sequence[MeasuredAnswer], seconds: float, limits_s: dict[str, float]
) -> Goodput:
    """Count the answers that kept to every limit. A failed answer counts as not good."""
    judged = [answer for answer in answers if answer.failure != UNFINISHED]
    good = sum(is_good(answer, limits_s) for answer in judged)
    share = good / len(judged) if judged else 0.0
    return Goodput(limits_s, good, share, _rate(good, seconds))


def is_good(answer: MeasuredAnswer, limits_s: dict[str, float]) -> bool:
    """Return whether an answer finished within every limit. `itl` is the mean of its gaps.

    An answer without text has its end-to-end time as its TTFT.
    """
    if not answer.has_finished or answer.e2e_s is None:
        return False
    gaps = answer.gaps_s
    measured = {
        "ttft": answer.e2e_s if answer.ttft_s is None else answer.ttft_s,
        "itl": math.fsum(gaps) / len(gaps) if gaps else 0.0,
        "e2e": answer.e2e_s,
    }
    return all(measured[name] <= limit for name, limit in limits_s.items())


def client_figures(
    answers: Sequence[MeasuredAnswer],
    lags: Sequence[float],
    cpu: float,
    peak_cpu: float,
    *,
    is_open: bool,
) -> ClientFigures:
    """Return how well the client kept up, with the reasons if it was the bottleneck.

    `lags`: how late its event loop ran, in seconds. `cpu` and `peak_cpu`: shares of a core.
    `is_open`: whether the load is an open loop, in which a request can begin late.
    """
    lag = percentiles(lags)
    late = percentiles(each.began - each.intended for each in answers) if is_open else None
    reasons = []
    if cpu >= MAX_CPU:
        reasons.append(f"its process used {cpu:.0%} of a core")
    elif peak_cpu >= MAX_CPU:
        reasons.append(f"for a second its process used {peak_cpu:.0%} of a core")
    if lag is not None and lag.p99 >= MAX_LAG_S:
        others = " (other programs were using its core)" if not reasons else ""
        reasons.append(f"its event loop ran {1000 * lag.p99:,.0f} ms late (p99){others}")
    if late is not None and late.p99 >= MAX_LATE_S:
        reasons.append(f"its requests began {1000 * late.p99:,.0f} ms late (p99)")
    return ClientFigures(cpu, peak_cpu, lag, late, bool(reasons), reasons)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
