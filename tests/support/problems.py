"""Expect a `Problem` with a certain code."""

import contextlib
from collections.abc import Iterator

import pytest

from penstock.errors import Problem


@contextlib.contextmanager
def raises_problem(code: str) -> Iterator[pytest.ExceptionInfo[Problem]]:
    """Fail unless the block raises a `Problem` with this code."""
    with pytest.raises(Problem) as raised:
        yield raised
    assert raised.value.code == code
