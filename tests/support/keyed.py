"""Files of keys for servers in tests, and the requests of their owners."""

import signal
from pathlib import Path

from penstock.web.keys import key_table, new_key
from tests.support.raw import generate
from tests.support.servers import RunningServer
from tests.support.waiting import eventually


class Keys:
    """A key for each name, and their file. The owner `admin` is an admin.

    `fields` has further fields of an owner's table, by name, with values as in TOML. Change it, or
    delete from `keys`, and then `write` the file again.
    """

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.keys = {name: new_key() for name in names}
        self.fields: dict[str, dict[str, object]] = {}
        self.write()

    def write(self) -> None:
        """Write the file."""
        tables = []
        for name, key in self.keys.items():
            lines = [f"{field} = {value}" for field, value in self.fields.get(name, {}).items()]
            table = key_table(name, key, is_admin=name == "admin")
            tables.append("\n".join([table, *lines, ""]))
        self.path.write_text("\n".join(tables), encoding="utf-8")

    def header(self, name: str) -> str:
        """Return the header with the key of `name`."""
        return f"Authorization: Bearer {self.keys[name]}"

    def generate(self, name: str, prompt: str = "Hello", **fields: object) -> bytes:
        """Build a request of `name` to `/generate`."""
        head, _, body = generate(prompt, **fields).partition(b"\r\n\r\n")
        return head + f"\r\n{self.header(name)}\r\n\r\n".encode() + body


def reload_keys(server: RunningServer, said: str = "the server has") -> str:
    """Send SIGHUP, wait until the server has read its keys, and return what it said about it."""
    before = len(server.output)
    server.signal(signal.SIGHUP)

    def lines() -> list[str]:
        return [line for line in server.output[before:] if said in line]

    assert eventually(lambda: bool(lines()))
    return lines()[0]
