"""A resource that owners share: at most `limit` of it in all, and room for each owner.

The unit is the caller's (bytes). While there is room, an owner may take all of it. When one owner
has taken it all, other owners still get some, each up to an equal share; so the sum never grows
beyond twice the limit, and no owner keeps the others out. This module knows nothing of what is
shared.
"""

import collections


class Shares:
    """What each owner holds of a resource, and whether it may take more."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """What all owners hold together."""
        self._held_by: collections.Counter[str] = collections.Counter()

    def held_by(self, owner: str) -> int:
        """Return what `owner` holds."""
        return self._held_by[owner]

    def has_room(self, owner: str, amount: int) -> bool:
        """Return True if `owner` may take `amount` now."""
        if self.held + amount <= self.limit:
            return True
        if self.held + amount > 2 * self.limit:
            return False
        num_others = len(self._held_by.keys() - {owner})
        return self._held_by[owner] + amount <= self.limit // (num_others + 1)

    def take(self, owner: str, amount: int) -> bool:
        """Take `amount` for `owner`; return False, and take nothing, if there is no room."""
        if not self.has_room(owner, amount):
            return False
        self.held += amount
        self._held_by[owner] += amount
        return True

    def give_back(self, owner: str, amount: int) -> None:
        """Give back what `owner` has taken."""
        self.held -= amount
        self._held_by[owner] -= amount
        if self._held_by[owner] <= 0:
            del self._held_by[owner]  # owners come and go
