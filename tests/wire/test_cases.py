"""Forms of HTTP/1.1 requests: each gets the right answer, at both ends, and never two answers.

The cases are in `cases`; `case` says how an outcome is read. No case waits longer than the server's
own timeouts, and all run at once.
"""

import asyncio
import itertools

import pytest

from tests.wire.case import Case, get, outcome_of, outcomes_of
from tests.wire.cases import codings, connections, headers, hosts, lengths, request_lines, targets
from tests.wire.cases.granian import DIFFERENCES
from tests.wire.ends import End

TABLES: dict[str, list[Case]] = {
    "request line": request_lines.CASES,
    "target": targets.CASES,
    "header": headers.CASES,
    "host": hosts.CASES,
    "length": lengths.CASES,
    "coding": codings.CASES,
    "connection": connections.CASES,
}
CASES = {f"{table}: {case.name}": case for table, cases in TABLES.items() for case in cases}


@pytest.fixture(scope="module")
def outcomes(end: End) -> dict[str, str]:
    """The outcome of every case at this end."""
    return asyncio.run(outcomes_of(CASES, end))


def right_outcomes(end: End, name: str) -> tuple[str, ...]:
    right = CASES[name].right
    if end.is_own:
        return right
    if name in DIFFERENCES:
        return DIFFERENCES[name][0]
    # RFC 9112, section 9.6, only recommends to say so; Granian does not after a broken chunk.
    return (*right, *(each.replace("close", "gone") for each in right))


@pytest.mark.parametrize("name", CASES)
def test_a_request_has_its_outcome(end: End, outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] in right_outcomes(end, name)


def test_each_case_is_one() -> None:
    assert not DIFFERENCES.keys() - CASES.keys()
    assert len(CASES) == sum(map(len, TABLES.values()))
    sent = sorted(case.sent for case in CASES.values())
    assert [a for a, b in itertools.pairwise(sent) if a == b] == []


async def test_the_server_answers_as_before(end: End, outcomes: dict[str, str]) -> None:
    assert outcomes
    words, answers = await outcome_of(Case("good", get(), ()), end)
    assert words == "200 next"
    assert answers[0].request_id == "first"
