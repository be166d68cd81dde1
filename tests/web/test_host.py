"""Host names and origins: this machine's own are admitted, others only by name."""

from collections.abc import Collection
from typing import Any

import pytest
from starlette.responses import Response

from penstock.api.native.errors import problem_details
from penstock.errors import Problem
from penstock.web.host import HostCheck, is_loopback


def report(_: Any, problem: Problem) -> Response:
    return problem_details(problem)


def status(
    host: str,
    *origins: str,
    hosts: Collection[str] | None = (),
    admitted: Collection[str] = (),
) -> int:
    """Return the status of a request for `host` from a page at `origins`; 200 if it is admitted."""
    headers = [(b"host", host.encode()), *((b"origin", each.encode()) for each in origins)]
    scope = {"type": "http", "path": "/", "headers": headers}
    problem = HostCheck(lambda: hosts, admitted).problem(scope)
    return 200 if problem is None else problem.status


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:8000",
        "127.255.255.254:65535",
        "[::1]",
        "[::1]:9000",
        "[0:0:0:0:0:0:0:1]",
        "penstock.localhost:80",
    ],
)
def test_this_machine_s_names_are_admitted_at_any_port(host: str) -> None:
    assert status(host) == 200
    assert status("localhost:1", f"http://{host}") == 200
    assert status("localhost:1", f"https://{host}") == 200


def test_other_names_are_admitted_by_name() -> None:
    assert status("models.example:80") == 403
    assert status("Models.Example:80", hosts={"models.example"}) == 200
    assert status("models.example", "https://models.example", hosts={"models.example"}) == 200
    assert status("models.example", "https://evil.example", hosts={"models.example"}) == 403


def test_any_name_will_do_where_a_key_is_asked_for() -> None:
    assert status("anything.example", "https://else.example", hosts=None) == 200
    assert status("any/thing", hosts=None) == 400


def test_origins_are_admitted_by_name_and_null_is_one() -> None:
    for origin in ("null", "https://example.org"):
        assert status("localhost", origin) == 403
        assert status("localhost", origin, admitted=["null", "https://example.org"]) == 200
    assert status("localhost", "https://example.org:444", admitted=["https://example.org"]) == 403
    assert status("localhost", "https://example.org", admitted=["*"]) == 200
    assert status("evil.example", "https://example.org", admitted=["*"]) == 403


def test_each_of_several_origins_is_looked_at() -> None:
    assert status("localhost", "http://localhost", "https://example.org") == 403


@pytest.mark.parametrize(
    "name", ["127.0.0.1.example", "0x7f000001", "localhost.", "::", "0.0.0.0", "10.0.0.1", ""]
)
def test_a_name_that_only_looks_like_this_machine_is_not(name: str) -> None:
    assert not is_loopback(name)


def test_a_host_may_spell_out_the_root_of_all_names() -> None:
    assert status("localhost.") == status("localhost.:8000") == 200
    assert status(".") == 400


def test_health_checks_need_no_host_and_neither_does_http_1_0() -> None:
    check = HostCheck(lambda: (), ())
    scope: dict[str, Any] = {"type": "http", "path": "/health/ready", "headers": []}
    assert check.problem(scope) is None
    scope["headers"] = [(b"host", b"evil.example")]
    assert check.problem(scope) is not None
    scope = {"type": "http", "path": "/generate", "headers": [], "http_version": "1.0"}
    assert check.problem(scope) is None
    scope["http_version"] = "1.1"
    problem = check.problem(scope)
    assert problem is not None
    assert problem.code == "bad_host"
