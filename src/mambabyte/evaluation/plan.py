"""Which bytes does the model see before the byte it is scored on? Three answers, as runs from the zero state.

A run reads inputs [start - 1, stop - 1) of a document, where the input before the document's first byte is a newline,
and so predicts its bytes [start, stop). The first byte of a document is therefore scored from the model's distribution
after one newline from the zero state, and the first byte of a later window from the one byte before it.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

Mode = Literal["stream", "window", "sliding"]
CONTEXT = 8192


@dataclasses.dataclass(frozen=True)
class Run:
    """One pass from the zero state over bytes [start, stop) of a document, of which [scored, stop) count."""

    document: int
    start: int
    scored: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How every byte of every document is scored, exactly once.

    stream: the state is carried over the whole document. window: non-overlapping windows of `context` bytes. sliding:
    windows of `context` bytes every `stride`; the first counts whole, each later one only its last `stride` bytes, so
    that these are predicted from at least `context - stride` bytes.

    Raises ValueError for an unknown mode, or a context or stride that the mode has no use for.
    """

    mode: Mode = "stream"
    context: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.context is not None and self.context < 1:
            raise ValueError(f"context must be at least 1 byte, got {self.context}")
        if self.context is not None and self.mode == "stream":
            raise ValueError(f"context {self.context} needs the mode window or sliding: stream reads on to the end")
        if self.stride is not None and self.mode != "sliding":
            raise ValueError(f"stride {self.stride} needs the mode sliding: mode {self.mode} has no overlap")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise ValueError(f"stride must lie between 1 and the context of {self.window} bytes, got {self.stride}")

    @property
    def window(self) -> int:
        """Bytes of a window; 8192, the paper's, unless the plan says."""
        return CONTEXT if self.context is None else self.context

    @property
    def step(self) -> int:
        """Bytes from the start of a window to that of the next."""
        if self.mode == "window":
            return self.window
        return max(1, self.window // 2) if self.stride is None else self.stride

    @property
    def reported(self) -> dict[str, int | None]:
        """context and stride as a report gives them: None where the mode has none."""
        return {
            "context": None if self.mode == "stream" else self.window,
            "stride": self.step if self.mode == "sliding" else None,
        }

    def runs(self, documents: Iterable[tuple[int, int]]) -> Iterator[Run]:
        """The runs over documents given as (number, size in bytes), in that order; none for an empty document."""
        for document, size in documents:
            window = size if self.mode == "stream" else self.window
            scored = 0
            while scored < size:
                start = 0 if scored == 0 else scored - (window - self.step)
                stop = min(start + window, size)
                yield Run(document, start, scored, stop)
                scored = stop
