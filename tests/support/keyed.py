"""Files of keys for servers in tests, and the requests of their owners."""

from pathlib import Path

from penstock.web.keys import key_table, new_key
from tests.support.raw import generate


class Keys:
    """Keys by name, and their file."""

    def __init__(self, path: Path, *names: str, **limits: int) -> None:
        """Make a key for each name. `limits` are those of every name."""
        self.path = path
        self._keys = {name: new_key() for name in names}
        self.write(**limits)

    def write(self, *without: str, **limits: int) -> None:
        """Write the file again, without some of the names, and with these limits."""
        lines = "".join(f"\n{name} = {value}" for name, value in limits.items())
        tables = [
            key_table(name, key, is_admin=name == "admin") + lines
            for name, key in self._keys.items()
            if name not in without
        ]
        self.path.write_text("\n\n".join(tables) + "\n", encoding="utf-8")

    def header(self, name: str) -> str:
        """Return the header with the key of `name`."""
        return f"Authorization: Bearer {self._keys[name]}"

    def generate(self, name: str, prompt: str = "Hello", **fields: object) -> bytes:
        """Build a request of `name` to `/generate`."""
        head, _, body = generate(prompt, **fields).partition(b"\r\n\r\n")
        return head + f"\r\n{self.header(name)}\r\n\r\n".encode() + body
