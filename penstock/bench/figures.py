"""Answers → figures. Pure.

Percentiles are of answers that finished, and are values that were measured: the smallest one that
so many percent do not exceed. Tokens are the server's own counts, or none at all. A rate is over
the whole run: from the first moment to the last answer's end.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from penstock.bench.answer import UNFINISHED, Answer

MAX_CPU = 0.9
MAX_LAG_S = 0.02
MAX_LATE_S = 0.02


class Percentiles(msgspec.Struct, frozen=True):
    """Of some values, in their unit."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float
    count: int


class Goodput(msgspec.Struct, frozen=True):
    """Requests within all limits: of all that were sent and not given up by the person."""

    limits_s: dict[str, float]
    good: int
    share: float
    requests_per_second: float


class ClientFigures(msgspec.Struct, frozen=True):
    """How the client itself did. `late_s`: how much after its time a request was begun."""

    cpu: float
    peak_cpu: float
    loop_lag_s: Percentiles | None
    late_s: Percentiles | None
    was_bottleneck: bool
    reasons: list[str]


class Figures(msgspec.Struct, frozen=True):
    """What one run showed. Times in seconds.

    `tokens_per_second` and `prompt_tokens_per_second` are None where an answer came without usage;
    `num_without_usage` says how many did. `itl_s` is between one event with text and the next,
    `tpot_s` per token after the first event, an answer at a time.
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
    """None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None

    def at(percent: int) -> float:
        return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]

    mean = math.fsum(ordered) / len(ordered)
    return Percentiles(at(50), at(90), at(95), at(99), ordered[-1], mean, len(ordered))


def figures(
    answers: Sequence[Answer],
    seconds: float,
    client: ClientFigures,
    *,
    max_in_flight: int = 0,
    limits_s: dict[str, float] | None = None,
) -> Figures:
    """Those of a run of so many seconds. `limits_s`: what a good answer keeps to."""
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


def goodput(answers: Sequence[Answer], seconds: float, limits_s: dict[str, float]) -> Goodput:
    """How many answers kept to every limit; one that failed did not."""
    judged = [answer for answer in answers if answer.failure != UNFINISHED]
    good = sum(is_good(answer, limits_s) for answer in judged)
    share = good / len(judged) if judged else 0.0
    return Goodput(limits_s, good, share, _rate(good, seconds))


def is_good(answer: Answer, limits_s: dict[str, float]) -> bool:
    """Has it finished, within every limit? `itl` is the mean of its gaps."""
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
    answers: Sequence[Answer], lags: Sequence[float], cpu: float, peak_cpu: float, *, is_open: bool
) -> ClientFigures:
    """Whether the client kept up; where it did not, why, in sentences."""
    lag = percentiles(lags)
    late = percentiles(each.began - each.intended for each in answers) if is_open else None
    reasons = []
    if cpu >= MAX_CPU:
        reasons.append(f"its process took {cpu:.0%} of a core")
    elif peak_cpu >= MAX_CPU:
        reasons.append(f"for a second its process took {peak_cpu:.0%} of a core")
    if lag is not None and lag.p99 >= MAX_LAG_S:
        others = ", as other programs had its core" if not reasons else ""
        late_ms = f"{1000 * lag.p99:,.0f} ms"
        reasons.append(f"one time in a hundred its loop ran {late_ms} late or more{others}")
    if late is not None and late.p99 >= MAX_LATE_S:
        reasons.append(f"one request in a hundred began {1000 * late.p99:,.0f} ms late or more")
    return ClientFigures(cpu, peak_cpu, lag, late, bool(reasons), reasons)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
