"""Keys: which requests are admitted, and that no key is stored."""

import hashlib
import re
from pathlib import Path

import pytest

from penstock.errors import StartError
from penstock.web.auth import KeyCheck, owner_of
from penstock.web.key_file import key_ring, read_keys
from penstock.web.keys import KeyRing, hash_of, key_table, new_key

KEY = "psk_0123456789abcdefghijklmnopqrstuv"


def test_a_new_key_cannot_be_guessed_and_needs_no_quoting() -> None:
    keys = {new_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(re.fullmatch(r"psk_[A-Za-z0-9_-]{43}", key) for key in keys)


def test_a_ring_knows_its_keys_and_nothing_that_is_nearly_one() -> None:
    ring = key_ring([KEY], [KEY[::-1]], "")
    owner = ring.owner_of(KEY.encode())
    assert owner is not None
    assert not owner.is_admin
    admin = ring.owner_of(KEY[::-1].encode())
    assert admin is not None
    assert admin.is_admin
    for wrong in (b"", KEY[:-1].encode(), KEY.encode() + b" ", KEY.upper().encode(), b"\xff" * 36):
        assert ring.owner_of(wrong) is None


def test_nothing_in_a_ring_is_a_key() -> None:
    ring = key_ring([KEY], [], "")
    seen: list[object] = [ring]
    text = ""
    for thing in seen:
        text += repr(thing)
        fields = vars(thing) if hasattr(thing, "__dict__") and not callable(thing) else {}
        seen += list(fields.values())
        if isinstance(thing, dict):
            seen += [*thing.keys(), *thing.values()]
    assert hashlib.sha256(KEY.encode()).digest() in seen
    assert KEY not in text


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_of_keys_holds_names_hashes_and_limits(tmp_path: Path) -> None:
    text = "\n".join(
        [
            key_table("alice", KEY, is_admin=False),
            "max_streams = 4\nmax_resumable = 10",
            "max_retained_bytes = 1000\ntokens_per_minute = 99",
            key_table("ops.team", KEY[::-1], is_admin=True),
        ]
    )
    alice, team = read_keys(write(tmp_path / "keys.toml", text))
    assert alice.owner.name == "key alice"
    assert vars(alice.owner.limits) == {
        "max_streams": 4,
        "max_resumable": 10,
        "max_retained_bytes": 1000,
        "tokens_per_minute": 99,
    }
    assert not alice.owner.is_admin
    assert team.owner.is_admin
    assert alice.owner.is_closed
    assert KEY not in text


@pytest.mark.parametrize(
    "text",
    [
        "keys = 5",
        "[key.alice]",
        "[keys.alice]",
        '[keys.alice]\nhash = "psk_secret"',
        f'[keys.alice]\nhash = "{hash_of(KEY)}"\nmax_streams = 0',
        f'[keys.alice]\nhash = "{hash_of(KEY)}"\nmax_stream = 1',
        f'[keys.alice]\nhash = "{hash_of(KEY)}"\nadmin = "yes"',
        f'[keys."a\\nb"]\nhash = "{hash_of(KEY)}"',
        "[keys.alice",
    ],
    ids=str,
)
def test_a_file_that_is_wrong_is_refused_and_nothing_of_its_keys_repeated(
    tmp_path: Path, text: str
) -> None:
    with pytest.raises(StartError) as refused:
        read_keys(write(tmp_path / "keys.toml", text))
    assert refused.value.hint
    assert "secret" not in f"{refused.value} {refused.value.hint}"


def test_keys_are_read_again_and_stay_where_the_file_is_broken(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", key_table("alice", KEY, is_admin=False))
    ring = key_ring([], [], str(path))
    write(path, key_table("bob", KEY[::-1], is_admin=False))
    assert ring.owner_of(KEY[::-1].encode()) is None
    ring.reload()
    assert ring.owner_of(KEY.encode()) is None
    assert ring.owner_of(KEY[::-1].encode()) is not None
    write(path, "[keys")
    with pytest.raises(StartError):
        ring.reload()
    assert ring.owner_of(KEY[::-1].encode()) is not None


def test_a_file_without_keys_is_refused_and_lets_nobody_in(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.toml", "")
    with pytest.raises(StartError):
        key_ring([], [], str(path))
    write(path, key_table("alice", KEY, is_admin=False))
    ring = key_ring([], [], str(path))
    write(path, "")
    with pytest.raises(StartError, match="is empty"):
        ring.reload()
    assert ring.owner_of(KEY.encode()) is not None
    write(path, "[keys.alice]\nhash = []")
    ring.reload()
    assert ring.owner_of(KEY.encode()) is None
    assert not ring.is_open
    assert key_ring([], [], "").is_open


def test_a_key_in_the_settings_never_has_an_owner_of_the_file(tmp_path: Path) -> None:
    tables = [key_table(name, name + KEY, is_admin=False) for name in ("1", "admin-1")]
    path = write(tmp_path / "keys.toml", "\n".join(tables))
    ring = key_ring([KEY], [KEY[::-1]], str(path))
    keys = (KEY, KEY[::-1], "1" + KEY, "admin-1" + KEY)
    owners = [ring.owner_of(key.encode()) for key in keys]
    assert len({owner.name for owner in owners if owner is not None}) == 4


@pytest.mark.parametrize(
    "key", ["short", "a" * 513, "with a space in its midst", "\u00e4" * 20, ""]
)
def test_a_malformed_key_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(StartError) as refused:
        key_ring([key], [], "")
    assert not key or key not in f"{refused.value} {refused.value.hint}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
async def test_without_keys_owners_are_addresses_and_of_ipv6_networks(
    one: str, other: str, same: bool
) -> None:
    owners = []
    for address in (one, other):
        scope = {"type": "http", "path": "/generate", "headers": [], "client": (address, 1)}
        assert KeyCheck(KeyRing()).problem(scope) is None
        owners.append(owner_of(scope))
    assert (owners[0] == owners[1]) is same
    assert not owners[0].is_closed
