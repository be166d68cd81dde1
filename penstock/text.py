"""An engine's output to text that is safe to send: whole characters, and no stop strings.

In: the engine's pieces in order, as `str` or as UTF-8 `bytes` cut anywhere. Out: text whose
concatenation is the answer, for every way to cut the pieces. This module knows no tokens, no
streams and no time.

The rules:

- All bytes together decode as `bytes.decode("utf-8", "replace")` decodes them: an incomplete
  character waits for its rest, and invalid bytes become U+FFFD.
- The answer ends before the earliest place where a stop string begins. The stop string and all
  text after it are dropped. If two stop strings begin at the same place, both give the same
  answer, so the shorter stop string ends it, because it is complete first.
- Text is held back only while it may begin a stop string: the longest suffix of the text so far
  that is a prefix of a stop string. With the stop strings "abcd" and "b", the "b" of "abc" does not
  end the answer yet, because a "d" would move the end before the "a".

All stop strings form one Aho-Corasick automaton, so the work is linear in the text, for any number
of stop strings. It is made when it is first needed. If no stop string can begin in a piece, the
piece is returned without a look at each character.
"""

import codecs
from collections.abc import Sequence
from sys import getsizeof

_NOWHERE = 1 << 62
_NODE_BYTES = 250  # a dict with one entry, and places in four lists


class Text:
    """The text of one answer: call `push` with each piece, then `flush`, and send the results.

    `stop` holds the stop strings. Raises ValueError if one of them is empty, and TypeError if
    `stop` is a string itself.
    """

    __slots__ = (
        "_joiner",
        "_match",
        "_node",
        "_starts",
        "_stop",
        "_stops",
        "held",
        "stopped",
        "stopped_by",
    )

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str):
            raise TypeError("stop is a sequence of strings, not one string")
        if not all(stop):
            raise ValueError("a stop string cannot be empty")
        self.stopped = False
        """True if a stop string ended the answer; `push` and `flush` then return no text."""
        self.stopped_by: str | None = None
        """The stop string that ended the answer."""
        self.held = ""
        """The text that is held back because it may begin a stop string."""
        self._joiner: codecs.IncrementalDecoder | None = None
        self._stop = tuple(stop)
        self._stops: _Stops | None = None
        self._starts = frozenset(each[0] for each in stop)
        self._node = 0
        self._match = _NOWHERE  # the place in `held` where the first complete stop string begins

    @property
    def incomplete(self) -> bytes:
        """The bytes that are held back because they begin a character."""
        return b"" if self._joiner is None else self._joiner.getstate()[0]

    @property
    def num_bytes(self) -> int:
        """The memory of the automaton and of the text that is held back, in bytes."""
        num_nodes = 0 if self._stops is None else len(self._stops.tables[0])
        return num_nodes * _NODE_BYTES + getsizeof(self.held)

    def push(self, piece: str | bytes) -> str:
        """Add the next piece and return the text that is now certain."""
        if self._joiner is not None or not isinstance(piece, str):
            piece = self._join(piece)
        if not self._stop:
            return piece
        if self._node == 0 and not self.stopped and self._starts.isdisjoint(piece):
            return piece
        if self._stops is None:  # it takes much more memory than the stop strings
            self._stops = _Stops(self._stop)
        return self._hold_back(piece, self._stops)

    def push_unstopped(self, piece: str | bytes) -> str:
        """Add the next piece and return its text; stop strings in it do not end the answer."""
        stop, self._stop = self._stop, ()
        text = self.push(piece)
        self._stop = stop
        return text

    def flush(self) -> str:
        """End the answer and return the text that was held back."""
        text = self.push(self._joiner.decode(b"", True)) if self._joiner is not None else ""
        if self._match != _NOWHERE:
            self._note_stop(self.held, self._match)
            text += self.held[: self._match]
        else:
            text += self.held
        self._forget()
        return text

    def _join(self, piece: str | bytes) -> str:
        if self._joiner is None:
            self._joiner = codecs.getincrementaldecoder("utf-8")("replace")
        if not piece:
            return ""
        if isinstance(piece, str):  # the incomplete character stays incomplete
            return self._joiner.decode(b"", True) + piece
        return self._joiner.decode(piece)

    def _hold_back(self, piece: str, stops: "_Stops") -> str:
        if self.stopped:
            return ""
        text = self.held + piece
        end = len(self.held)
        node, match = self._node, self._match
        following, fallback, depth, longest = stops.tables
        for char in piece:
            end += 1
            while node and char not in following[node]:
                node = fallback[node]
            node = following[node].get(char, 0)
            if longest[node]:
                match = min(match, end - longest[node])
            if match <= end - depth[node]:  # no stop string that begins earlier can still match
                self._note_stop(text, match)
                self._forget()
                return text[:match]
        certain = end - depth[node]
        self._node = node
        self._match = match if match == _NOWHERE else match - certain
        self.held = text[certain:]
        return text[:certain]

    def _note_stop(self, text: str, place: int) -> None:
        """Note that a stop string ended the answer at this place of `text`."""
        self.stopped = True
        found = (each for each in self._stop if text.startswith(each, place))
        self.stopped_by = min(found, key=len)

    def _forget(self) -> None:
        self.held = ""
        self._node = 0
        self._match = _NOWHERE


class _Stops:
    """The stop strings as one automaton. A node is a prefix of a stop string; node 0 is empty.

    `following[n]` maps a character to the node of n with that character. `fallback[n]` is the node
    of the longest proper suffix of n that is a node. `depth[n]` is the length of n. `longest[n]` is
    the length of the longest stop string that n ends with, or 0.
    """

    __slots__ = ("tables",)

    def __init__(self, stop: Sequence[str]) -> None:
        following: list[dict[str, int]] = [{}]
        depth = [0]
        longest = [0]
        for each in stop:
            node = 0
            for char in each:
                if char not in following[node]:
                    following[node][char] = len(following)
                    following.append({})
                    depth.append(depth[node] + 1)
                    longest.append(0)
                node = following[node][char]
            longest[node] = depth[node]
        fallback = [0] * len(following)
        level = list(following[0].values())
        for (
            node
        ) in level:  # it grows during the loop: each node comes after the nodes nearer to the root
            for char, child in following[node].items():
                end = fallback[node]
                while end and char not in following[end]:
                    end = fallback[end]
                fallback[child] = following[end].get(char, 0)
                longest[child] = longest[child] or longest[fallback[child]]
                level.append(child)
        self.tables = (following, fallback, depth, longest)
