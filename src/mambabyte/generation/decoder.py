"""Decoding: rows that choose a byte, read it, and end at a limit or a stop string, together but each as if alone."""

from typing import Literal

import torch

from mambabyte.generation.engine import Engine, Logits, prefill
from mambabyte.generation.sampling import Sampler
from mambabyte.generation.stops import StopMatcher
from mambabyte.models import ByteLMState
from mambabyte.models.context import Context

End = Literal["limit", "stop"]


class Row:
    """One sequence being continued.

    `output` holds the bytes that are certain; `end` says why there will be no more, or is None. A byte is chosen from
    the logits one step before the engine reads it; `chosen` holds all of them, the stop string's included.
    """

    def __init__(
        self, number: int, context: Context, recent: bytes, sampler: Sampler, max_bytes: int, stops: StopMatcher
    ):
        self.number = number
        self.context = context
        self.sampler = sampler
        self.max_bytes = max_bytes
        self.stops = stops
        self.recent = recent
        self.chosen = bytearray()
        self.output = bytearray()
        self.end: End | None = "limit" if max_bytes == 0 else None

    def choose(self, logits: Logits) -> int:
        """Choose the next byte from its logits (256,), and end the row if it is the last."""
        history = bytes(self.recent + self.chosen[-self.sampler.settings.repetition_window :])
        byte = self.sampler.choose(logits, len(self.chosen), history)
        self.chosen.append(byte)
        self.output += self.stops.push(byte)
        if self.stops.found is not None:
            self.end = "stop"
        elif len(self.chosen) == self.max_bytes:
            self.output += self.stops.finish()
            self.end = "limit"
        return byte


class Decoder:
    """Rows of one engine, decoded together; a row may join or leave between any two steps.

    As a context manager it frees the rows that are left at the end.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[Row] = []

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        for row in list(self.rows):
            self.leave(row)

    def join(
        self,
        context: Context,
        sampler: Sampler,
        *,
        max_bytes: int,
        stops: StopMatcher | None = None,
        recent: bytes = b"",
    ) -> Row:
        """Continue from `context` (batch 1); `recent` are the last bytes that it read, for the repetition penalty."""
        row = Row(self.engine.join(context), context, recent, sampler, max_bytes, stops or StopMatcher())
        self.rows.append(row)
        return row

    def step(self) -> None:
        """Every running row reads the last byte it chose, if any, and chooses the next."""
        running = [row for row in self.rows if row.end is None]
        begun = [row for row in running if row.chosen]
        for row in running:
            if not row.chosen:
                row.choose(row.context.logits[0].cpu().numpy())
        if begun:
            data = [bytes(row.chosen[-1:]) for row in begun]
            for row, logits in zip(begun, self.engine.read([row.number for row in begun], data), strict=True):
                row.choose(logits[-1])

    def context(self, row: Row) -> Context:
        """What `row` has read once it has read its `output`, neither more nor less; the row must not have left.

        Bytes that it chose but did not output (a stop string, or the beginning of one) are not part of it.
        """
        output = bytes(row.output)
        if not output:
            return row.context
        if output != row.chosen:
            return prefill(self.engine.model, output, row.context)
        number = self.engine.join(self.engine.state(row.number))
        logits = torch.tensor(self.engine.read([number], [output[-1:]])[0])
        state: ByteLMState = self.engine.state(number)
        self.engine.leave(number)
        return Context(layers=state.layers, logits=logits.to(row.context.logits.device))

    def leave(self, row: Row) -> None:
        """Free the row's place; it may be running still."""
        self.rows.remove(row)
        self.engine.leave(row.number)
