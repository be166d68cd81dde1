"""Pieces of an engine's output → text that is safe to send: whole characters, no stop strings.

In: the engine's pieces in order, `str` or UTF-8 `bytes` cut anywhere. Out: text whose concatenation
is the answer, whatever the pieces were. Not known here: tokens, streams, time.

The rules:

- Bytes become what `bytes.decode("utf-8", "replace")` makes of all of them: an incomplete character
  waits for its rest, invalid bytes become U+FFFD.
- The answer ends before the earliest place where any of the stop strings begins; the stop string
  and everything after it are dropped. Of two that begin at the same place either gives this text,
  so the shorter one decides, which is the sooner.
- Text is held back only while it is the beginning of a stop string, and as little as possible: the
  longest end of the text so far that some stop string begins with. So where stops are "abcd" and
  "b", the "b" of "abc" does not end the answer yet: "d" would move its end before the "a".

All stop strings together are one Aho-Corasick automaton, so the work is linear in the text, however
many and however repetitive the stops are. A piece that no stop string can begin in is passed on
without looking at its characters one by one.
"""

import codecs
from collections.abc import Sequence

_NOWHERE = 1 << 62


class Text:
    """The text of one answer: `push` each piece, send what comes back, `flush` at the end."""

    __slots__ = ("_joiner", "_match", "_node", "_starts", "_stops", "held", "stopped")

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str):
            raise TypeError("stop is a sequence of strings, not one string")
        self.stopped = False
        """A stop string has ended the answer; from here on `push` and `flush` return nothing."""
        self.held = ""
        """Text kept back because it is the beginning of a stop string."""
        self._joiner: codecs.IncrementalDecoder | None = None
        self._stops = _Stops(stop) if stop else None
        self._starts = frozenset(each[0] for each in stop)
        self._node = 0
        self._match = _NOWHERE  # where in `held` the earliest complete stop string begins

    @property
    def incomplete(self) -> bytes:
        """Bytes kept back because they are the beginning of a character."""
        return b"" if self._joiner is None else self._joiner.getstate()[0]

    def push(self, piece: str | bytes) -> str:
        """Take the next piece; return the text that is certain now."""
        if self._joiner is not None or not isinstance(piece, str):
            piece = self._join(piece)
        if self._stops is None:
            return piece
        if self._node == 0 and not self.stopped and self._starts.isdisjoint(piece):
            return piece
        return self._hold_back(piece, self._stops)

    def flush(self) -> str:
        """Return what was held back: no further piece will come."""
        text = self.push(self._joiner.decode(b"", True)) if self._joiner is not None else ""
        if self._match != _NOWHERE:
            self.stopped = True
            text += self.held[: self._match]
        else:
            text += self.held
        self._forget()
        return text

    def _join(self, piece: str | bytes) -> str:
        if self._joiner is None:
            self._joiner = codecs.getincrementaldecoder("utf-8")("replace")
        if isinstance(piece, str):  # text after an incomplete character: that one stays incomplete
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
            if match <= end - depth[node]:  # nothing that began before the match can still grow
                self.stopped = True
                self._forget()
                return text[:match]
        certain = end - depth[node]
        self._node = node
        self._match = match if match == _NOWHERE else match - certain
        self.held = text[certain:]
        return text[:certain]

    def _forget(self) -> None:
        self.held = ""
        self._node = 0
        self._match = _NOWHERE


class _Stops:
    """The stop strings as one automaton; a node is a beginning of a stop string, 0 the empty one.

    `following[n]` leads one character on, `fallback[n]` is the node of the longest proper end of n
    that is a node too, `depth[n]` the length of n, `longest[n]` the length of the longest stop
    string that n ends with, or 0.
    """

    __slots__ = ("tables",)

    def __init__(self, stop: Sequence[str]) -> None:
        following: list[dict[str, int]] = [{}]
        depth = [0]
        longest = [0]
        for each in stop:
            if not each:
                raise ValueError("a stop string cannot be empty")
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
        for node in level:  # grows as it goes: every node after the nodes nearer to the root
            for char, child in following[node].items():
                end = fallback[node]
                while end and char not in following[end]:
                    end = fallback[end]
                fallback[child] = following[end].get(char, 0)
                longest[child] = longest[child] or longest[fallback[child]]
                level.append(child)
        self.tables = (following, fallback, depth, longest)
