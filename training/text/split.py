"""Decides which texts belong to the training split and which are held out.

A story is held out if its combination (hero's name, plot, main object) hashes to zero modulo
HELD_OUT_MODULUS. A held-out combination never occurs in the training split, and every story of the
held-out split has a held-out combination. Users never ask for the held-out subjects alone in a
training chat ("Tell me a story about an otter"), although the words occur in its stories and in
longer themes. No training text has a held-out name. All other texts (small talk, questions about
rill, explanations) are held out only by seed: short texts can occur in both splits.
"""

from enum import StrEnum
from zlib import crc32

HELD_OUT_MODULUS = 16
HELD_OUT_SUBJECTS = frozenset(
    {"otter", "badger", "windmill", "orchard", "whistle", "compass", "tailor", "pilot", "telescope"}
)
# fmt: off
HELD_OUT_NAMES = (
    "Anselm", "Beatrix", "Cosmo", "Drusilla", "Ephraim", "Fiona",
    "Gunther", "Hortense", "Ignatius", "Jemima", "Kasimir", "Lavinia",
    "Mortimer", "Nigel", "Ophelia", "Percival", "Quentin", "Rosalind",
    "Sebastian", "Theodora", "Ulysses", "Vladimir", "Winston", "Xavier",
    "Yolanda", "Zebedee", "Bob", "Kate", "Mohammed", "Zorblax",
)
# fmt: on


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held-out"


def is_held_out(combination: tuple[str, str, str]) -> bool:
    """Return whether a combination (hero's name, plot, main object) is held out of training."""
    return crc32("|".join(combination).encode()) % HELD_OUT_MODULUS == 0


def belongs(combination: tuple[str, str, str], split: Split) -> bool:
    return is_held_out(combination) == (split is Split.HELD_OUT)


def may_be_asked_for(subject: str, split: Split) -> bool:
    return split is Split.HELD_OUT or subject not in HELD_OUT_SUBJECTS
