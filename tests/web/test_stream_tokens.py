"""Tokens of streams: which requests offer one, and what its proof proves."""

import time

import pytest

from penstock.errors import Problem
from penstock.stream.quotas import Owner
from penstock.web.auth import KeyCheck
from penstock.web.keys import Key, KeyRing
from penstock.web.stream_tokens import (
    STREAM_TOKEN,
    StreamToken,
    invalid_token,
    new_secret,
    offered_token,
    token_for,
)

KEY_ID, OTHER_ID = "0123456789ab", "ba9876543210"
SECRET = new_secret()
OWNER = Owner("key alice", is_closed=True, key_id=KEY_ID)


def scope(path: str, query: bytes, method: str = "GET") -> dict[str, object]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": [],
        "client": ("127.0.0.1", 1),
    }


def test_a_proof_is_of_one_secret_and_one_key() -> None:
    proof = token_for(SECRET, KEY_ID).partition(".")[2]
    assert StreamToken(OWNER, proof).opens(SECRET)
    assert not StreamToken(OWNER, proof).opens(new_secret())
    assert not StreamToken(Owner(key_id=OTHER_ID), proof).opens(SECRET)
    assert len({token_for(new_secret(), KEY_ID) for _ in range(1000)}) == 1000


def test_a_stream_without_a_secret_is_opened_by_no_token() -> None:
    """The record of a stream that an earlier version opened has none."""
    assert not StreamToken(OWNER, token_for(b"", KEY_ID).partition(".")[2]).opens(b"")


def test_a_token_is_found_between_other_fields() -> None:
    token = token_for(SECRET, KEY_ID)
    for query in (f"token={token}", f"after=3&token={token}", f"token={token}&after=a.3&x"):
        assert offered_token(scope("/streams/a", query.encode())) == tuple(token.split("."))
    for path, method in (("/streams/a", "DELETE"), ("/streams/a/b", "GET"), ("/metrics", "GET")):
        assert offered_token(scope(path, f"token={token}".encode(), method)) is None
    assert offered_token(scope("/streams/a", f"xtoken={token}".encode())) is None


def test_the_token_of_a_key_that_is_unknown_or_expired_is_refused_at_once() -> None:
    """Nobody looks for the stream then: strangers cannot make the store work."""
    accepted = [
        Key(b"1" * 32, OWNER),
        Key(b"2" * 32, Owner("key bob", is_closed=True, key_id=OTHER_ID), time.time() - 1),
    ]
    check = KeyCheck(KeyRing(lambda: accepted))
    for key_id, is_known in ((KEY_ID, True), (OTHER_ID, False), ("0" * 12, False)):
        asked = scope("/streams/a", b"token=" + token_for(SECRET, key_id).encode())
        problem = check.problem(asked)
        assert (STREAM_TOKEN in asked) is is_known
        assert (problem is None) is is_known
        assert problem is None or problem.detail == invalid_token().detail


def test_before_its_proof_is_checked_a_token_s_request_belongs_to_no_key() -> None:
    check = KeyCheck(KeyRing(lambda: [Key(b"1" * 32, OWNER)]))
    asked = scope("/streams/a", b"token=" + token_for(SECRET, KEY_ID).encode())
    assert check.problem(asked) is None
    owner = asked["penstock.owner"]
    assert isinstance(owner, Owner)
    assert not owner.may_see(OWNER)
    assert not owner.key_id


def test_a_malformed_token_is_refused() -> None:
    for given in (b"", b"x", b"a" * 12 + b"." + b"A" * 42, b"A" * 12 + b"." + b"A" * 43):
        with pytest.raises(Problem) as refused:
            offered_token(scope("/streams/a", b"token=" + given))
        assert refused.value.code == "invalid_stream_token"
