"""Regular expressions in JSON schemas that llama.cpp binds to the wrong texts.

The version of llguidance inside llama.cpp ends a text too early after a character that JSON writes
with a backslash (a quotation mark, a backslash, a control character), if the pattern demands that
very character: the answer to `^a"[0-9]$` is `"a\\""`. Version 1.7.6 is right. Character classes of
several characters are right in every version.
"""

import re

# A class of several characters, or of all but some.
_CLASS = re.compile(r"\[(?:\^|(?:\\.|[^\]\\])(?:\\.|[^\]\\]))(?:\\.|[^\]\\])*\]", re.DOTALL)
_ESCAPED_IN_JSON = re.compile(r'["\x00-\x1f]|\\[\\nrtfvae]|\\[xuU0-7]|\\c[A-Z]')


def is_bound_wrongly(pattern: str) -> bool:
    """Return True if the pattern may demand a character that JSON writes with a backslash."""
    return _ESCAPED_IN_JSON.search(_CLASS.sub("", pattern)) is not None
