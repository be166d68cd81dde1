"""Notes on a request: the fields that were left out, for the response's header and the log.

A request that asks for more than this server can do is answered if what is left out does not
change the answer. The client learns the names in `X-Penstock-Ignored`. Names come from clients, so
they are reduced to safe ASCII and bounded in number and length.
"""

import re

HEADER = "X-Penstock-Ignored"
MAX_HEADER_BYTES = 1024
MAX_NAME_CHARACTERS = 96
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


class Notes:
    """The names of a request's ignored fields, in the order in which they were found.

    `strict` is True if such a request must be refused instead (`--strict`).
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.names: dict[str, None] = {}

    def ignore(self, name: str) -> None:
        """Note that the field `name` was left out: `min_p`, `messages[].name`."""
        self.names[_UNSAFE.sub("?", name[:MAX_NAME_CHARACTERS])] = None

    def header(self) -> str:
        """Return the header's value, at most 1 KiB: names, then how many more there are."""
        names = list(self.names)
        value = ", ".join(names)
        kept = len(names)
        while len(value) > MAX_HEADER_BYTES:
            kept -= 1
            value = ", ".join([*names[:kept], f"and {len(names) - kept} more"])
        return value
