"""Decoding: rows that choose a byte, read it, and end at a limit or a stop, together but each as if alone.

One step is one read of the engine: every running row reads the byte it chose last and, if it has a drafter, the bytes
that it guesses will follow; it then chooses byte by byte for as long as the guess agrees.
"""

import itertools
import time
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mambabyte.generation.cursor import Cursor
from mambabyte.generation.drafters import Guesser
from mambabyte.generation.engine import Engine, Logits, prefill
from mambabyte.generation.sampling import Scores, winners
from mambabyte.generation.speculation import Pace, Statistics, agreement, too_close
from mambabyte.generation.stops import StopMatcher
from mambabyte.models import ByteLMState
from mambabyte.models.context import Context

End = Literal["limit", "stop", "complete", "cancelled"]
T = TypeVar("T", bound=np.generic)


class Draft:
    """A row's drafter: its guesser, how far it guesses, and the paper's inexact rule if it is asked for.

    With `top_beta` a guessed byte also passes if it is among that many most likely ones
    (https://arxiv.org/abs/2401.13660, section 3.2): faster, and no longer the model's distribution.
    """

    def __init__(self, guesser: Guesser, cost: float, top_beta: int | None = None) -> None:
        self.guesser = guesser
        self.pace = Pace(cost)
        self.top_beta = top_beta
        self.confidence = self.pace.begin()

    def guess(self, cursor: Cursor, at_once: int) -> bytes:
        """What may follow: one byte short of the limit, for the last byte needs no reading, and of what the engine
        reads at once together with the byte chosen last."""
        length = min(self.pace.length(), cursor.left - 1, at_once - 1)
        self.confidence = self.pace.begin()
        return self.guesser.guess(length, cursor, self.confidence) if length > 0 else b""

    def learn(self, guessed: int, chosen: bytes, accepted: int) -> None:
        """So many bytes were guessed, the row chose these, and the first so many of them were as guessed."""
        self.pace.learn(self.confidence, min(guessed, len(chosen)), accepted)
        self.guesser.read(chosen)


class Row:
    """One sequence being continued.

    `output` holds the bytes that are certain; `end` says why there will be no more, or is None. A byte is chosen from
    the logits one step before the engine reads it; `chosen` holds all of them, the stop string's included.
    """

    def __init__(self, number: int, context: Context, cursor: Cursor, stops: StopMatcher, draft: Draft | None) -> None:
        self.number = number
        self.context = context
        self.cursor = cursor
        self.stops = stops
        self.draft = draft
        self.chosen = bytearray()
        self.output = bytearray()
        self.end: End | None = None
        self._check_end()
        # The last state that plain decoding has to the last bit, and how many chosen bytes it has read; None: the
        # engine's present one is such a state.
        self.anchor: tuple[ByteLMState, int] | None = None

    @property
    def free(self) -> bool:
        """Whether its bytes are those that win by logits and noise alone."""
        inexact = self.draft is not None and self.draft.top_beta is not None
        return self.anchor is None and not inexact and self.cursor.free

    def take(self, data: bytes) -> int:
        """Choose these bytes, up to the one that ends the row; returns how many."""
        if self.cursor.free and not self.stops.stops:
            self.chosen += data
            self.output += data
            self.cursor = self.cursor.skip(len(data))
            self._check_end()
            return len(data)
        for taken, byte in enumerate(data, 1):
            self.chosen.append(byte)
            self.cursor = self.cursor.after(byte)
            self.output += self.stops.push(byte)
            self._check_end()
            if self.end is not None:
                return taken
        return len(data)

    def guess(self, at_once: int) -> bytes:
        """What the drafter thinks will follow, as much as the engine reads at once."""
        return b"" if self.draft is None else self.draft.guess(self.cursor, at_once)

    def judge(self, scores: Scores, guessed: int | None) -> int:
        """The byte to take."""
        beta = None if self.draft is None else self.draft.top_beta
        if beta is not None and guessed is not None and (scores > scores[guessed]).sum() < beta:
            return guessed
        return int(scores.argmax())

    def _check_end(self) -> None:
        if self.stops.found is not None:
            self.end = "stop"
        elif self.cursor.ended:
            self.end = "complete"
        elif self.cursor.left == 0:
            self.end = "limit"
        if self.end is not None:
            self.output += self.stops.finish()


class Decoder:
    """Rows of one engine, decoded together; a row may join or leave between any two steps.

    As a context manager it frees the rows that are left at the end.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[Row] = []
        self.statistics = Statistics()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        for row in list(self.rows):
            self.leave(row)

    def join(
        self, context: Context, cursor: Cursor, *, stops: StopMatcher | None = None, draft: Draft | None = None
    ) -> Row:
        """Continue from `context` (batch 1) at `cursor`."""
        row = Row(self.engine.join(context), context, cursor, stops or StopMatcher(), draft)
        self.rows.append(row)
        return row

    def step(self) -> None:
        """Every running row reads what it chose last and guesses to follow, if anything, and chooses what does."""
        start = time.perf_counter()
        running = [row for row in self.rows if row.end is None]
        begun = [row for row in running if row.chosen]
        for row in running:
            if not row.chosen:
                self._advance(row, b"", row.context.logits.cpu().numpy(), None)
        if begun:
            self._read(begun)
        self.statistics.seconds += time.perf_counter() - start

    def _read(self, rows: list[Row]) -> None:
        start = time.perf_counter()
        guesses = [row.guess(self.engine.at_once) for row in rows]
        guessed = time.perf_counter()
        if self.engine.tolerance > 0:
            for row, guess in zip(rows, guesses, strict=True):
                if guess and row.anchor is None:
                    row.anchor = (self.engine.state(row.number), len(row.chosen) - 1)
        data = [bytes(row.chosen[-1:]) + guess for row, guess in zip(rows, guesses, strict=True)]
        logits = self.engine.read([row.number for row in rows], data)
        read = time.perf_counter()
        self.statistics.passes += len(rows)
        self.statistics.drafter_seconds += guessed - start
        before = self.statistics.bytes
        winners = winning(rows, logits)
        for row, guess, after, won in zip(rows, guesses, logits, winners, strict=True):
            number, taken = row.number, self._advance(row, guess, after, won)
            if row.number == number and taken < len(after):
                self.engine.rewind(number, taken)
        drafts = [row.draft for row in rows if row.draft is not None]
        if drafts:
            counts = sum(map(len, guesses)), self.statistics.bytes - before, sum(d.confidence.all_reads for d in drafts)
            average = [total / len(rows) for total in (*counts, guessed - start, read - guessed)]
            for draft in drafts:
                draft.pace.time(*average)

    def _advance(self, row: Row, guess: bytes, logits: Logits, won: bytes | None) -> int:
        """Choose bytes from their logits (1 + len(guess), 256) while the guess agrees; returns how many.

        `won` are the bytes that win after each byte read, if that is all that decides.
        """
        if won is not None:
            accepted = agreement(won, guess)
            taken = row.take(won[: accepted + 1])
        else:
            taken = self._choose(row, guess, logits)
        chosen = bytes(row.chosen[-taken:])
        accepted = agreement(chosen, guess)
        self.statistics.bytes += taken
        self.statistics.drafted += len(guess)
        self.statistics.accepted += accepted
        if row.draft is not None:
            start = time.perf_counter()
            row.draft.learn(len(guess), chosen, accepted)
            self.statistics.drafter_seconds += time.perf_counter() - start
        return taken

    def _choose(self, row: Row, guess: bytes, logits: Logits) -> int:
        """Byte by byte, each with the constraint and the penalty that those before it leave; returns how many."""
        taken = 0
        for after, guessed in zip(logits, [*guess, None], strict=True):
            scores = row.cursor.scores(after)
            if row.anchor is not None and too_close(
                scores, after, row.cursor.sampler.settings.temperature, self.engine.tolerance
            ):
                scores = row.cursor.scores(self._replay(row))
                guessed = None
            byte = row.judge(scores, guessed)
            taken += row.take(bytes((byte,)))
            if row.end is not None or byte != guessed:
                break
        return taken

    def _replay(self, row: Row) -> Logits:
        """The logits after all chosen bytes as plain decoding has them, read one by one from where it last was.

        The row goes on from there, so that no byte is replayed twice.
        """
        assert row.anchor is not None
        state, read = row.anchor
        number = self.engine.join(state)
        for byte in row.chosen[read:]:
            logits = self.engine.read([number], [bytes((byte,))])[0]
        self.statistics.replays += len(row.chosen) - read
        self.engine.leave(row.number)
        row.number, row.anchor = number, None
        return logits[-1]

    def context(self, row: Row) -> Context:
        """What `row` has read once it has read its `output`, neither more nor less; the row must not have left.

        Bytes that it chose but did not output (a stop string, or the beginning of one) are not part of it.
        """
        output = bytes(row.output)
        if not output:
            return row.context
        if output != row.chosen:
            return prefill(self.engine.model, output, row.context)
        number = self.engine.fork(row.number)
        logits = torch.tensor(self.engine.read([number], [output[-1:]])[0])
        state = self.engine.state(number)
        self.engine.leave(number)
        return Context(layers=state.layers, logits=logits.to(row.context.logits.device))

    def leave(self, row: Row) -> None:
        """Free the row's place; it may be running still."""
        self.rows.remove(row)
        self.engine.leave(row.number)
        if row.draft is not None:
            row.draft.guesser.close()


def winning(rows: list[Row], logits: list[Logits]) -> list[bytes | None]:
    """The bytes that win in the logits (n, 256) of each row, as if it was alone; None where more than those decides.

    Rows with the same settings are looked at together.
    """
    together: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        if row.free:
            together.setdefault(id(row.cursor.sampler.settings), []).append(index)
    won: list[bytes | None] = [None] * len(rows)
    for some in together.values():
        settings = rows[some[0]].cursor.sampler.settings
        noise = None
        if settings.temperature > 0:
            noise = _joined([rows[i].cursor.noise(len(logits[i])) for i in some])
        found = iter(winners(_joined([logits[i] for i in some]), settings, noise))
        for i in some:
            won[i] = bytes(itertools.islice(found, len(logits[i])))
    return won


def _joined(arrays: list[NDArray[T]]) -> NDArray[T]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
