"""Which texts belong to the training split and which are held out.

A story is held out when its combination (hero's name, plot, main object) hashes to zero modulo
HELD_OUT_MODULUS; such a combination never occurs in the training split, and every story of the
held-out split has one. Some subjects are never by themselves asked for in a training chat ("Tell
me a story about an otter"), although the words occur in its stories and in longer themes. All
other texts (small talk, questions about rill, explanations) are held out by seed only: short ones
may occur in both splits.
"""

from enum import StrEnum
from zlib import crc32

HELD_OUT_MODULUS = 16
HELD_OUT_SUBJECTS = frozenset(
    {"otter", "badger", "windmill", "orchard", "whistle", "compass", "tailor", "pilot", "telescope"}
)


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held-out"


def is_held_out(combination: tuple[str, str, str]) -> bool:
    """Tell whether (hero's name, plot, main object) is kept out of the training split."""
    return crc32("|".join(combination).encode()) % HELD_OUT_MODULUS == 0


def belongs(combination: tuple[str, str, str], split: Split) -> bool:
    return is_held_out(combination) == (split is Split.HELD_OUT)


def may_be_asked_for(subject: str, split: Split) -> bool:
    return split is Split.HELD_OUT or subject not in HELD_OUT_SUBJECTS
