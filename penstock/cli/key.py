"""API keys on the command line: `penstock key` makes a key, the other commands read one.

In: a name, or the environment. Out: a key. This module knows no server.
"""

import os
from typing import Annotated

import typer

from penstock.cli.screen import console, fail

commands = typer.Typer(rich_markup_mode="rich", pretty_exceptions_enable=False)


def key_from_environment() -> str | None:
    """Return the first key in PENSTOCK_API_KEY, which may list several, or None."""
    return os.environ.get("PENSTOCK_API_KEY", "").partition(",")[0].strip() or None


@commands.command(
    "key",
    help="Make an API key.\n\n"
    "[bold]penstock key alice >> keys.toml[/bold]  show a new key, and add its table to keys.toml"
    "\n\n"
    "[bold]penstock serve --keys keys.toml[/bold]  serve with the keys of that file\n\n"
    "The key goes to standard error and is shown only once. Its table goes to standard output and"
    " contains only a hash of the key. You can add limits to the table: max_streams,"
    " max_resumable, max_retained_bytes, tokens_per_minute. After you change the file, send the"
    " server SIGHUP.",
)
def _key(
    name: Annotated[
        str,
        typer.Argument(help="The name of the key's owner: 1 to 64 letters, digits, '.', '_', '-'."),
    ] = "me",
    admin: Annotated[
        bool,
        typer.Option(
            "--admin", help="Allow the key to read /metrics and to read and cancel all streams."
        ),
    ] = False,
) -> None:
    from penstock.web.keys import is_name, key_table, new_key

    if not is_name(name):
        fail("A name must be 1 to 64 letters, digits, '.', '_' or '-'.")
    key = new_key()
    console.print(
        f"The key of {name}. It is shown only once; the file of keys contains only its hash.\n"
        f"  [bold]{key}[/bold]\nAdd this table to the file of keys:",
        soft_wrap=True,
    )
    print(key_table(name, key, is_admin=admin))  # noqa: T201 - the table, on standard output
