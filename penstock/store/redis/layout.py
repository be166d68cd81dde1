"""The names of the keys, and commands as bytes.

A log is a Redis stream. The id of an entry is `EPOCH-NUMBER`: the owner's epoch, and the entry's
number within that epoch, from 0. Entry `1-0` is the header. A claim begins an epoch with the entry
`EPOCH-0`: `CLAIMED` or `TORN`, and the id of the entry before it. Redis refuses ids that do not
rise, so the epoch in the high half fences old owners.
"""

from hashlib import sha256

FORMAT = "1"
"""The version of this layout. Change it if older servers would misread what newer servers write."""

PREFIX = f"penstock:{FORMAT}:"
FORMAT_KEY = "penstock:format"
"""Holds "VERSION BIRTH". The birth is a random name that changes when the store is emptied."""

LEASE_MS = 2000
"""How long a lease holds without a renewal, by the store's clock."""
RENEW_S = 0.5
SAFETY_MS = 7 * 24 * 3600 * 1000
"""When the store forgets a log that nobody ends, and a dead replica's list of logs."""

REPLICAS = f"{PREFIX}replicas"
"""A set: the tenures that may own logs."""
LEASES = f"{PREFIX}lease:"
"""For each tenure a key that expires with its lease; its value is what `exchange` shares."""
OPEN = f"{PREFIX}open:"
"""For each tenure a hash: the ids of the logs that it owns, with their epochs."""
TAKEN = f"{PREFIX}taken:"
"""For each tenure a set: logs that others have claimed from it, until it has learned of them."""
LIVES = f"{PREFIX}lives"
"""A hash: for each tenure the life of the store in which it last knew that all its logs have
everything. A life is one run of one server (its `run_id`): a restart and a failover begin another,
and both may lose what the old one had confirmed."""
LOGS = f"{PREFIX}s:"
READERS = f"{PREFIX}rd:"
"""For each followed log a sorted set: replicas that follow it, by the time when that expires."""
VALUES = f"{PREFIX}v:"
TRIALS = f"{PREFIX}trial:"
"""For each replica a key that exists only within the script that tries all commands."""


def value_key(name: str) -> str:
    """Return the key of a shared value. The name may come from a client, so its hash is used."""
    return VALUES + sha256(name.encode()).hexdigest()


def command(*words: bytes | str | int | float) -> bytes:
    """Return a command in Redis's protocol (RESP)."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def parse_id(entry_id: bytes) -> tuple[int, int]:
    """Return an entry's epoch and its number."""
    epoch, _, number = entry_id.partition(b"-")
    return int(epoch), int(number)
