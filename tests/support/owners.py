"""Owners of streams, as keys make them."""

from penstock.stream.quotas import Owner, OwnerLimits

ALICE = Owner("alice", is_closed=True)
BOB = Owner("bob", is_closed=True)
ADMIN = Owner("root", is_closed=True, is_admin=True)


def limited(**limits: int) -> Owner:
    """Return an owner with these limits."""
    return Owner("key", OwnerLimits(**limits), is_closed=True)
