"""Every kind of refusal tells every API's clients whether to try again, and when."""

import json
from collections.abc import Callable

import pytest
from starlette.responses import Response

from penstock.api.anthropic import errors as anthropic_errors
from penstock.api.native import errors as native_errors
from penstock.api.ollama import errors as ollama_errors
from penstock.api.openai import errors as openai_errors
from penstock.errors import PROBLEMS, Problem

Respond = Callable[[Problem], Response]
FORMS: dict[str, Respond] = {
    "native": native_errors.problem_details,
    "openai": openai_errors.error_response,
    "anthropic": anthropic_errors.error_response,
    "ollama": ollama_errors.error_response,
}
RENAMED = {"prompt_too_long", "answer_too_long", "no_such_route"}
"""Codes for which OpenAI has its own word."""


def error_in(api: str, response: Response) -> dict[str, object]:
    """Return the object that has the code of a refusal."""
    body = json.loads(bytes(response.body))
    error: dict[str, object] = body if api in ("native", "ollama") else body["error"]
    return error


@pytest.mark.parametrize("api", FORMS)
@pytest.mark.parametrize("code", PROBLEMS)
def test_every_refusal_says_whether_to_try_again(api: str, code: str) -> None:
    kind = PROBLEMS[code]
    response = FORMS[api](Problem(code, "It is so."))
    error = error_in(api, response)
    assert response.headers["x-should-retry"] == str(kind.retry_safe).lower()
    assert error["retry_safe"] is kind.retry_safe
    assert (error["code"] == code) or (api == "openai" and code in RENAMED)
    assert (response.status_code >= 500) == (kind.status >= 500) or response.status_code == 529
    assert not {"retry-after", "retry-after-ms"} & set(response.headers)


@pytest.mark.parametrize("api", FORMS)
def test_a_refusal_says_when_to_try_again_in_seconds_and_in_milliseconds(api: str) -> None:
    response = FORMS[api](Problem("queue_full", "It is full.", headers={"Retry-After": "3"}))
    assert response.headers["retry-after"] == "3"
    assert response.headers["retry-after-ms"] == "3000"
    assert response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize("api", FORMS)
def test_what_must_not_be_sent_again_is_not_whatever_its_kind(api: str) -> None:
    response = FORMS[api](Problem("engine_died", "It died again and again.", retry_safe=False))
    assert response.headers["x-should-retry"] == "false"
    assert error_in(api, response)["retry_safe"] is False
