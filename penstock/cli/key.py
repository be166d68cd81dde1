"""API keys on the command line: `penstock key` makes and changes keys, other commands read one.

In: a name, a file of keys, or the environment. Out: a key, or a changed file. This module knows no
server.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.cli.screen import console, fail
from penstock.errors import StartError

_PRINT = "print"


class _Group(TyperGroup):
    """Takes `penstock key NAME` for the command that prints a table."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the hidden command first if the arguments name no command."""
        if not args or args[0] not in (*self.commands, "--help"):
            args = [_PRINT, *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(
    name="key",
    cls=_Group,
    help="Make, replace, list and revoke API keys.\n\n"
    "[bold]penstock key add alice[/bold]  make a key, and add its table to keys.toml\n\n"
    "[bold]penstock key rotate alice[/bold]  add a second key; the first one stays valid\n\n"
    "[bold]penstock key revoke alice --old[/bold]  keep only the newest key\n\n"
    "[bold]penstock key revoke alice[/bold]  revoke all keys of alice\n\n"
    "[bold]penstock key list[/bold]  show who has keys and which limits\n\n"
    "[bold]penstock key alice >> keys.toml[/bold]  make a key, and print its table instead of"
    " changing a file\n\n"
    "[bold]penstock serve --keys keys.toml[/bold]  serve with the keys of that file\n\n"
    "A key is shown only once; the file contains only its hash. You can add limits to a table:"
    " max_streams, max_resumable, max_retained_bytes, tokens_per_minute, expires. After you change"
    " the file, send the server SIGHUP.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Name = Annotated[
    str,
    typer.Argument(help="The name of the key's owner: 1 to 64 letters, digits, '.', '_', '-'."),
]
Admin = Annotated[
    bool,
    typer.Option(
        "--admin", help="Allow the key to read /metrics and to read and cancel all streams."
    ),
]
File = Annotated[
    Path,
    typer.Option("--file", envvar="PENSTOCK_KEYS", help="The file of keys.", show_envvar=True),
]
DEFAULT_FILE = Path("keys.toml")


def key_from_environment() -> str | None:
    """Return the first key in PENSTOCK_API_KEY, which may list several, or None."""
    return os.environ.get("PENSTOCK_API_KEY", "").partition(",")[0].strip() or None


@commands.command(_PRINT, hidden=True, help="Make a key and print its table.")
def _print(name: Name = "me", admin: Admin = False) -> None:
    from penstock.web.keys import key_table, new_key

    _check_name(name)
    key = new_key()
    console.print(
        f"The key of {name}. It is shown only once; the file of keys contains only its hash.\n"
        f"  [bold]{key}[/bold]\nAdd this table to the file of keys:",
        soft_wrap=True,
    )
    print(key_table(name, key, is_admin=admin))  # noqa: T201 - the table, on standard output


@commands.command("add")
def _add(
    name: Name,
    admin: Admin = False,
    expires: Annotated[
        datetime | None,
        typer.Option(
            help="When the key expires, in UTC, for example 2027-01-31. Its streams end then.",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        ),
    ] = None,
    file: File = DEFAULT_FILE,
) -> None:
    """Make a key and add its table to the file. The key goes to standard output."""
    from penstock.web.key_edits import add_table
    from penstock.web.key_file import entries_of
    from penstock.web.keys import key_table, new_key

    _check_name(name)
    key = new_key()
    until = expires.replace(tzinfo=UTC) if expires else None
    table = key_table(name, key, is_admin=admin, expires=until)

    def change(text: str) -> str:
        if text.strip() and name in entries_of(text):
            raise StartError(
                f"The file has a table of {name} already.",
                f"`penstock key rotate {name}` makes another key for it.",
            )
        return add_table(text, table)

    _change(file, change)
    _show(key, f"The key of {name}. It is shown only once.")


@commands.command("rotate")
def _rotate(name: Name, file: File = DEFAULT_FILE) -> None:
    """Make another key for an owner. The old keys stay valid until you revoke them."""
    from penstock.web.key_edits import set_hashes
    from penstock.web.keys import hash_of, new_key

    key = new_key()

    def change(text: str) -> str:
        return set_hashes(text, name, [hash_of(key), *_hashes_of(text, name, file)])

    _change(file, change)
    _show(
        key,
        f"The new key of {name}. It is shown only once. When no client uses the old key any more:"
        f" penstock key revoke {name} --old",
    )


@commands.command("revoke")
def _revoke(
    name: Name,
    old: Annotated[bool, typer.Option("--old", help="Keep the newest key of this owner.")] = False,
    file: File = DEFAULT_FILE,
) -> None:
    """Revoke an owner's keys. Its table stays in the file, without a hash."""
    from penstock.web.key_edits import set_hashes

    def change(text: str) -> str:
        return set_hashes(text, name, _hashes_of(text, name, file)[: 1 if old else 0])

    _change(file, change)
    console.print(f"Revoked. Send the server SIGHUP: then the streams of these keys of {name} end.")


@commands.command("list")
def _list(file: File = DEFAULT_FILE) -> None:
    """List the owners in the file, the ids of their keys (newest first), and their limits."""
    from penstock.web.key_file import HASH_PREFIX, read_entries
    from penstock.web.keys import id_of

    try:
        entries = read_entries(file)
    except StartError as error:
        fail(str(error), error.hint)
    for name, entry in entries.items():
        ids = [id_of(bytes.fromhex(each.removeprefix(HASH_PREFIX))) for each in entry.hashes]
        parts = [name, " ".join(ids) or "revoked"]
        if entry.admin:
            parts.append("admin")
        if entry.expires is not None:
            word = "expired" if entry.expires <= datetime.now(UTC) else "expires"
            parts.append(f"{word} {entry.expires.astimezone(UTC):%Y-%m-%d %H:%M UTC}")
        limits = vars(entry.limits()).items()
        parts += [f"{limit} {value}" for limit, value in limits if value is not None]
        print("  ".join(parts))  # noqa: T201 - the list, on standard output


def _check_name(name: str) -> None:
    from penstock.web.keys import is_name

    if not is_name(name):
        fail("A name must be 1 to 64 letters, digits, '.', '_' or '-'.")


def _hashes_of(text: str, name: str, file: Path) -> list[str]:
    """Return an owner's hashes. Raises StartError."""
    from penstock.web.key_file import entries_of

    entry = entries_of(text).get(name)
    if entry is None:
        raise StartError(
            f"The file {file} has no table of this name.", "`penstock key list` shows the names."
        )
    return entry.hashes


def _change(file: Path, change: Callable[[str], str]) -> None:
    from penstock.web.key_edits import change_file

    try:
        change_file(file, change)
    except StartError as error:
        fail(str(error), error.hint)


def _show(key: str, note: str) -> None:
    console.print(f"{note} If a server runs with this file, send it SIGHUP.", soft_wrap=True)
    print(key)  # noqa: T201 - the key, on standard output
