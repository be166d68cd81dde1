"""Notes on a request: the fields that were left out, for the response's header and the log.

A request that asks for more than this server can do is answered if what is left out does not
change the answer. The client learns the names in `X-Penstock-Ignored`. Names come from clients, so
they are reduced to safe ASCII and bounded in number and length.
"""

import collections
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from penstock.stream.quotas import Owner

HEADER = "X-Penstock-Ignored"
MAX_HEADER_BYTES = 1024
MAX_NAME_CHARACTERS = 96
MAX_COUNT_CHARACTERS = len("and 1000000000 more")
# Names beyond these are only counted, by request and by owner; owners beyond these are forgotten.
MAX_NAMES = 1000
MAX_LOGGED_NAMES = 100
MAX_LOGGED_OWNERS = 1000
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")

log = logging.getLogger(__name__)


class Notes:
    """The names of a request's ignored fields, in the order in which they were found.

    `strict` is True if such a request must be refused instead (`--strict`).
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.names: dict[str, None] = {}
        self._num_more = 0

    def ignore(self, name: str) -> None:
        """Note that the field `name` was left out: `min_p`, `messages[].name`."""
        name = _UNSAFE.sub("?", name[:MAX_NAME_CHARACTERS])
        if len(self.names) < MAX_NAMES:
            self.names[name] = None
        elif name not in self.names:
            self._num_more += 1

    def unread(self, sent: Mapping[str, Any], read: Collection[str], place: str) -> None:
        """Note the fields of an object at `place` that are not in `read` and have a value."""
        for name, value in sent.items():
            if value and name not in read:
                self.ignore(f"{place}.{name}")

    def changed(self, names: Iterable[str]) -> None:
        """Add what the engine changed, in its own words: `messages (merged)`."""
        self.names |= dict.fromkeys(names)

    def ignore_or(self, refusal: Exception, name: str) -> None:
        """Note that the field `name` was left out; with `strict`, raise `refusal` instead."""
        if self.strict:
            raise refusal
        self.ignore(name)

    def header(self) -> str:
        """Return the header's value, at most 1 KiB: names, then how many more there are."""
        kept: list[str] = []
        size = 0
        for name in self.names:
            size += len(name) + len(", ")
            if size > MAX_HEADER_BYTES - MAX_COUNT_CHARACTERS:
                break
            kept.append(name)
        if num_more := len(self.names) + self._num_more - len(kept):
            kept.append(f"and {num_more} more")
        return ", ".join(kept)


def notes_of(context: Any) -> Notes:
    """Return the notes in a validation's context; without notes a request is taken strictly."""
    return context if isinstance(context, Notes) else Notes(strict=True)


def is_neutral(value: object) -> bool:
    """Return True if a value asks for nothing, in any field: null, false, 0, "", [] or {}."""
    return not value and isinstance(value, bool | int | float | str | list | dict | None)


def asks_nothing(value: object) -> bool:
    """Return True if a value asks for nothing: null, false or empty. The number 0 may ask."""
    return is_neutral(value) and (value != 0 or value is False)


class NoteLog:
    """Logs each name that an owner's requests had ignored, once."""

    def __init__(self) -> None:
        self._names: collections.OrderedDict[str, set[str]] = collections.OrderedDict()

    def add(self, owner: Owner, notes: Notes) -> None:
        """Log the names that are new for `owner`."""
        if not notes.names:
            return
        known = self._names.setdefault(owner.name, set())
        self._names.move_to_end(owner.name)
        if len(self._names) > MAX_LOGGED_OWNERS:
            self._names.popitem(last=False)
        for name in notes.names:
            if len(known) >= MAX_LOGGED_NAMES:
                return
            if name not in known:
                known.add(name)
                fields = {"field": name, "owner": owner.name}
                log.info("a field of a request is ignored", extra={"fields": fields})
