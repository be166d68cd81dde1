"""`penstock key`: the file of keys is changed as asked, and as little as possible."""

import functools
import os
import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import app
from penstock.errors import StartError
from penstock.web.key_edits import add_table, change_file, set_hashes
from penstock.web.key_file import key_ring, read_keys
from penstock.web.keys import hash_of, key_table, new_key

HASH = hash_of("a")


def key(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["key", *map(str, arguments)])


def made(*arguments: object) -> str:
    """Run a command that makes a key; return the key."""
    result = key(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def owners(path: Path, *keys: str) -> list[str | None]:
    """Return the name of each key's owner; None if the key is not accepted."""
    ring = key_ring(["x" * 16], [], str(path))
    found = [ring.owner_of(each.encode()) for each in keys]
    return [None if owner is None else owner.label for owner in found]


@pytest.mark.parametrize(
    ("arguments", "header"),
    [
        ([], "[keys.me]"),
        (["--admin"], "[keys.me]"),
        (["alice"], "[keys.alice]"),
        (["alice", "--admin"], "[keys.alice]"),
        (["ops.team"], '[keys."ops.team"]'),
    ],
    ids=str,
)
def test_a_name_alone_prints_a_table(path: Path, arguments: list[str], header: str) -> None:
    result = key(*arguments)
    assert result.exit_code == 0
    assert result.stdout.startswith(f'{header}\nhash = "sha256:')
    assert ("admin = true" in result.stdout) is ("--admin" in arguments)
    path.write_text(result.stdout)
    (only,) = read_keys(path)
    assert only.owner.is_admin is ("--admin" in arguments)


def test_a_key_is_added_to_the_end_and_its_file_is_private(path: Path) -> None:
    alice = made("add", "alice", "--file", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# Ours.\n" + path.read_text() + "max_streams = 3  # enough")
    before = path.read_text()
    path.chmod(0o640)
    bob = made("add", "bob", "--admin", "--expires", "2027-01-31", "--file", path)
    assert path.read_text().startswith(before)
    assert "expires = 2027-01-31T00:00:00Z" in path.read_text()
    assert owners(path, alice, bob) == ["alice", "bob"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert alice not in path.read_text()


def test_a_key_is_rotated_and_the_old_one_revoked(path: Path) -> None:
    old = made("add", "alice", "--file", path)
    bob = made("add", "bob", "--file", path)
    new = made("rotate", "alice", "--file", path)
    assert owners(path, old, new, bob) == ["alice", "alice", "bob"]
    newest = made("rotate", "alice", "--file", path)
    assert owners(path, old, new, newest) == ["alice"] * 3
    assert key("revoke", "alice", "--old", "--file", path).exit_code == 0
    assert owners(path, old, new, newest, bob) == [None, None, "alice", "bob"]
    assert key("revoke", "alice", "--file", path).exit_code == 0
    assert key("revoke", "bob", "--file", path).exit_code == 0  # the last key as well
    assert owners(path, newest, bob) == [None, None]
    assert owners(path, made("rotate", "bob", "--file", path)) == ["bob"]


def test_the_list_has_names_ids_and_limits_but_no_key(path: Path) -> None:
    alice = made("add", "alice", "--expires", "2001-01-01", "--file", path)
    path.write_text(path.read_text() + "tokens_per_minute = 5\n")
    made("add", "ops", "--admin", "--file", path)
    key("revoke", "ops", "--file", path)
    listed = key("list", "--file", path).stdout.splitlines()
    key_id = hash_of(alice).removeprefix("sha256:")[:12]
    assert listed == [
        f"alice  {key_id}  expired 2001-01-01 00:00 UTC  tokens_per_minute 5",
        "ops  revoked  admin",
    ]


def test_the_file_may_come_from_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_KEYS", str(path))
    made("add", "alice")
    assert path.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "alice"],
        ["add", "no spaces"],
        ["rotate", "nobody"],
        ["revoke", "nobody"],
        ["add", "bob", "--expires", "soon"],
    ],
    ids=str,
)
def test_a_change_that_is_impossible_changes_nothing(path: Path, arguments: list[str]) -> None:
    made("add", "alice", "--file", path)
    before = path.read_text()
    assert key(*arguments, "--file", path).exit_code != 0
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("text", ["[keys.a", "", f'[keys.a]\nhash = "{HASH}"\nmax_stream = 1\n'])
def test_a_broken_file_is_not_changed(path: Path, text: str) -> None:
    path.write_text(text)
    assert key("rotate", "a", "--file", path).exit_code == 1
    assert path.read_text() == text


KEEP = f"""\
# Who may use the server.
[keys.bob]  # a guest
max_streams = 1
hash   = "{HASH}"   # of March

[ keys . "alice" ]
hash = [
    "{hash_of("b")}",
    "{hash_of("c")}",
]
tokens_per_minute = 60_000

[keys.carla]
hash = '{hash_of("d")}'
"""


@pytest.mark.parametrize("name", ["bob", "alice", "carla"])
def test_comments_order_and_everything_else_stay(name: str) -> None:
    lines = KEEP.splitlines()
    changed = set_hashes(KEEP, name, [hash_of("x"), hash_of("y")]).splitlines()
    assert any(hash_of("x") in line and hash_of("y") in line for line in changed)
    kept = [line for line in lines if "sha256" not in line and line not in ("hash = [", "]")]
    assert [line for line in changed if line in kept] == kept
    others = [line for line in lines if line.startswith("hash") and "sha256" in line]
    assert len([line for line in changed if line in others]) == len(others) - (name != "alice")


@pytest.mark.parametrize(
    "text",
    [
        f'keys.a.hash = "{HASH}"\n',
        f'[keys]\na = {{hash = "{HASH}"}}\n',
        f'[keys.a]\n"hash" = "{HASH}"\n',
        f'[keys.a]\nhash = [\n  "{HASH}", # ]\n]\n',
    ],
)
def test_an_unusual_form_is_left_to_its_author(text: str) -> None:
    with pytest.raises(StartError, match="form that this command can change"):
        set_hashes(text, "a", [])


def test_a_change_that_fails_halfway_leaves_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("add", "alice", "--file", path)
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartError, match="No space left"):
        change_file(path, lambda text: add_table(text, table("bob")))
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_link_to_the_file_stays_a_link(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link.toml"
    made("add", "alice", "--file", path)
    link.symlink_to(path)
    made("add", "bob", "--file", link)
    assert link.is_symlink()
    assert len(read_keys(path)) == 2


def table(name: str) -> str:
    return key_table(name, new_key(), is_admin=False)


def test_changes_at_the_same_time_follow_one_another(path: Path) -> None:
    def add_ten(number: int) -> None:
        for each in range(10):
            added = table(f"{number}-{each}")
            change_file(path, functools.partial(add_table, table=added))

    threads = [threading.Thread(target=add_ten, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            read_keys(path)  # whole at any time
    assert len(read_keys(path)) == 30
