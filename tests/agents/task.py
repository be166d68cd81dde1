"""The task that the agents do in the test: a chain of commands, each of which needs the last.

Each command adds a link to a file: the hash of the file so far. So the finished file proves that
every command ran, once and in order, and the n-th command's output is known beforehand.
"""

import hashlib

FILE = "chain.txt"
LINK_CHARACTERS = 16
COMMAND = f"sha256sum {FILE} | cut -c1-{LINK_CHARACTERS} >> {FILE}; tail -n 1 {FILE}"
FIRST_COMMAND = f"echo start > {FILE}; {COMMAND}"
REQUEST = f"Add links to {FILE} until the chain is complete."
DONE = "The chain is complete."
"""The answer that ends the task."""


def command(number: int) -> str:
    """Return the command of the turn with this number, from 0."""
    return COMMAND if number else FIRST_COMMAND


def link(number: int) -> str:
    """Return the output of the turn with this number, from 0."""
    text = "start\n"
    for _ in range(number + 1):
        last = _hash(text)
        text += f"{last}\n"
    return last


def finished(num_turns: int) -> str:
    """Return the content of the file after so many turns."""
    return "".join(f"{line}\n" for line in ("start", *map(link, range(num_turns))))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:LINK_CHARACTERS]
