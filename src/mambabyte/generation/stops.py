"""Stop strings: found wherever a step ends, never emitted, not even their beginnings."""

from collections.abc import Iterable


class StopMatcher:
    """Passes bytes through until a stop string appears in them.

    Bytes that may be the beginning of a stop string are held back until the next ones decide. The output ends before
    the first stop string to be complete; of several complete at the same byte, before the longest.
    """

    def __init__(self, stops: Iterable[bytes] = ()) -> None:
        self.stops = tuple(stops)
        self.held = b""
        self.found: bytes | None = None

    def push(self, byte: int) -> bytes:
        """Take one byte; returns the bytes that are now certain to be output."""
        assert self.found is None, "the output has ended"
        if not self.stops:
            return bytes((byte,))
        self.held += bytes((byte,))
        self.found = max((s for s in self.stops if self.held.endswith(s)), key=len, default=None)
        keep = len(self.found) if self.found is not None else self._undecided()
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def finish(self) -> bytes:
        """No more bytes come: what was held back is output after all, unless it is a stop string."""
        out, self.held = (b"" if self.found is not None else self.held), b""
        return out

    def _undecided(self) -> int:
        """Length of the longest end of the held bytes that begins a stop string."""
        longest = max((len(s) - 1 for s in self.stops), default=0)
        for length in range(min(longest, len(self.held)), 0, -1):
            tail = self.held[-length:]
            if any(s.startswith(tail) for s in self.stops):
                return length
        return 0
