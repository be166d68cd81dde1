"""Small values under names, which all replicas that share a store see alike.

`Names` is the part of `LogStore` that keeps them; `MemoryNames` keeps them for one server that has
no store. A name is never a client's own text.
"""

import asyncio
from typing import Protocol


class Names(Protocol):
    """Values under names, each for a time. Raises StoreError if the store does not answer."""

    async def get(self, name: str) -> bytes | None:
        """Return a value, or None."""

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        """Store a value for `ttl` seconds unless the name has one; return the one it has.

        Returns None if the value was stored. Of calls at the same time, exactly one stores its own.
        """

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value for `ttl` seconds, in place of the old one."""

    async def delete(self, name: str) -> None:
        """Remove a value. Does nothing if there is none."""


class MemoryNames:
    """The names of one server, in its memory. No method waits for anything."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[bytes, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._values)

    async def get(self, name: str) -> bytes | None:
        """Return a value, or None."""
        kept = self._values.get(name)
        return None if kept is None else kept[0]

    async def put_if_absent(self, name: str, value: bytes, ttl: float) -> bytes | None:
        """Store a value for `ttl` seconds unless the name has one; return the one it has."""
        kept = self._values.get(name)
        if kept is not None:
            return kept[0]
        self._put(name, value, ttl)
        return None

    async def put(self, name: str, value: bytes, ttl: float) -> None:
        """Store a value for `ttl` seconds, in place of the old one."""
        self._put(name, value, ttl)

    async def delete(self, name: str) -> None:
        """Remove a value. Does nothing if there is none."""
        self._delete(name)

    def _put(self, name: str, value: bytes, ttl: float) -> None:
        self._delete(name)
        expiry = asyncio.get_running_loop().call_later(ttl, self._values.pop, name)
        self._values[name] = (value, expiry)

    def _delete(self, name: str) -> None:
        if kept := self._values.pop(name, None):
            kept[1].cancel()
