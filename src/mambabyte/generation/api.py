"""`generate` and `stream`: prompts in, bytes out."""

import dataclasses
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias, Unpack, overload

import torch

from mambabyte.generation.cursor import Cursor, Rule
from mambabyte.generation.decoder import Decoder, Draft, End, Row
from mambabyte.generation.drafters import ByteDrafter, Drafter, LookupDrafter
from mambabyte.generation.engine import Engine, open_engine
from mambabyte.generation.prefix_cache import PrefixCache, read_pieces
from mambabyte.generation.sampling import Sampler, Sampling, SamplingOptions, expect_integer
from mambabyte.generation.stops import StopMatcher
from mambabyte.generation.subword_drafter import SubwordDrafter
from mambabyte.models import ByteLM, ByteLMState, SubwordLM
from mambabyte.models.byte_lm import DOCUMENT_START
from mambabyte.models.context import Context

Text: TypeAlias = bytes | bytearray | str

# Bytes of a prompt that an exact engine reads by itself: torch's operator machinery takes seconds to import.
SHORT = 64


@overload
def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
    model: ByteLM,
    prompt: Text,
    *,
    max_bytes: int = ...,
    seed: int | None = ...,
    stop: Text | Sequence[Text] = ...,
    state: ByteLMState | None = ...,
    constraint: Rule | None = ...,
    drafter: Drafter | ByteLM | SubwordLM | str | None = ...,
    top_beta: int | None = ...,
    engine: Engine | None = ...,
    prefix_cache: PrefixCache | None = ...,
    **sampling: Unpack[SamplingOptions],
) -> bytes: ...
@overload
def generate(
    model: ByteLM,
    prompt: Sequence[Text],
    *,
    max_bytes: int = ...,
    seed: int | Sequence[int] | None = ...,
    stop: Text | Sequence[Text] = ...,
    state: ByteLMState | None = ...,
    constraint: Rule | None = ...,
    drafter: Drafter | ByteLM | SubwordLM | str | None = ...,
    top_beta: int | None = ...,
    max_rows: int = ...,
    engine: Engine | None = ...,
    prefix_cache: PrefixCache | None = ...,
    **sampling: Unpack[SamplingOptions],
) -> list[bytes]: ...
def generate(
    model: ByteLM,
    prompt: Text | Sequence[Text],
    *,
    max_bytes: int = 256,
    seed: int | Sequence[int] | None = None,
    stop: Text | Sequence[Text] = (),
    state: ByteLMState | None = None,
    constraint: Rule | None = None,
    drafter: Drafter | ByteLM | SubwordLM | str | None = None,
    top_beta: int | None = None,
    max_rows: int = 64,
    engine: Engine | None = None,
    prefix_cache: PrefixCache | None = None,
    **sampling: Unpack[SamplingOptions],
) -> bytes | list[bytes]:
    """Continue a prompt, or each of several; returns the continuations only.

    What a prompt gives depends on the model, the prompt, the settings and the seed: not on the other prompts.

    Args:
        model: whose distribution is drawn from.
        prompt: bytes, text (its UTF-8 bytes), or a sequence of those, of any lengths. An empty one is a document's
            beginning: one newline from the zero state.
        max_bytes: the most bytes to return.
        seed: decides every draw; None takes a fresh one for each prompt. One number for several prompts is the seed of
            each (equal prompts then continue equally); a sequence gives each its own.
        stop: strings that end the output, which ends before the first of them to appear in the continuation.
        state: what the model has read before the prompt (batch 1, shared by all prompts, or one row a prompt). A
            `Context` may be continued with an empty prompt.
        constraint: what the output may be, byte by byte; see `mambabyte.generation.constraints`.
        drafter: "lookup", a smaller model of bytes or of subwords, or any `Drafter`: the same bytes in less time. A
            model is made a `ByteDrafter` or `SubwordDrafter` in every call; make it one yourself to do so once.
        top_beta: accept a drafted byte that is among so many most likely ones, the paper's rule. It is faster and not
            exact: the output is no longer drawn from the model's distribution.
        max_rows: the most prompts that are decoded at once.
        engine: reuse an engine of this model; None opens one.
        prefix_cache: of this model; what earlier prompts with the same beginning left there is not read again. The
            output is the same without it. Prompts after a `state` do not use it.
        sampling: temperature (0 is greedy), top_k, top_p, min_p, repetition_penalty, repetition_window: see `Sampling`.

    Raises:
        ValueError: a setting out of its range, a state of another shape, a cache of another model, an empty prompt on
            a state that does not know the next byte's distribution, or logits that are not finite.
    """
    texts = [prompt] if isinstance(prompt, (bytes, bytearray, str)) else prompt
    prompts = [as_bytes("prompt", text) for text in texts]
    plan = _plan(max_bytes, stop, constraint, drafter, top_beta, prefix_cache, sampling)
    expect_integer("max_rows", max_rows, least=1)
    waiting = deque(zip(prompts, _seeds(seed, len(prompts)), _states(state, len(prompts)), strict=True))
    rows: list[Row] = []
    with Decoder(engine or open_engine(model)) as decoder:
        while waiting or decoder.rows:
            while waiting and len(decoder.rows) < max_rows:
                rows.append(plan.start(decoder, *waiting.popleft()))
            decoder.step()
            for row in [row for row in decoder.rows if row.end is not None]:
                decoder.leave(row)
    outputs = [bytes(row.output) for row in rows]
    return outputs[0] if texts is not prompt else outputs


def stream(
    model: ByteLM,
    prompt: Text,
    *,
    max_bytes: int = 256,
    seed: int | None = None,
    stop: Text | Sequence[Text] = (),
    state: ByteLMState | None = None,
    constraint: Rule | None = None,
    drafter: Drafter | ByteLM | SubwordLM | str | None = None,
    top_beta: int | None = None,
    engine: Engine | None = None,
    prefix_cache: PrefixCache | None = None,
    **sampling: Unpack[SamplingOptions],
) -> "Stream":
    """The bytes of `generate` for one prompt, as they become certain; arguments and errors as there.

    The prompt is read before this returns.
    """
    plan = _plan(max_bytes, stop, constraint, drafter, top_beta, prefix_cache, sampling)
    decoder = Decoder(engine or open_engine(model))
    text = as_bytes("prompt", prompt)
    return Stream(decoder, plan.start(decoder, text, _seeds(seed, 1)[0], _states(state, 1)[0]))


class Stream(Iterator[bytes]):
    """Pieces of one continuation, each at least one byte; stop asking at any time.

    `seed` is the seed that was used. `end` is "limit", "stop", "complete" (the constraint) or "cancelled" once the
    bytes have ended, None before. `statistics` counts what decoding did.
    """

    def __init__(self, decoder: Decoder, row: Row) -> None:
        self._decoder, self._row = decoder, row
        self._given = 0
        self.statistics = decoder.statistics
        self.seed = row.cursor.sampler.noise.seed

    def __next__(self) -> bytes:
        row = self._row
        while len(row.output) == self._given and row.end is None:
            self._decoder.step()
        if len(row.output) == self._given:
            raise StopIteration
        piece = bytes(row.output[self._given :])
        self._given = len(row.output)
        return piece

    def close(self) -> None:
        """Cancel: free the row. There are no more bytes, and the context is gone."""
        if self._row in self._decoder.rows:
            self._decoder.leave(self._row)
        self._given, self._row.end = len(self._row.output), self._row.end or "cancelled"

    @property
    def end(self) -> End | None:
        """Why there are no more bytes."""
        return self._row.end if self._given == len(self._row.output) else None

    @property
    def context(self) -> Context:
        """The state after the prompt and every byte given so far, and what follows.

        `generate(model, b"", state=context)` goes on as if there had been no break (but its noise begins anew). Raises
        ValueError after `close`.
        """
        if self._row not in self._decoder.rows:
            raise ValueError("the stream was closed, and its context is gone; take the context before closing it")
        assert self._given == len(self._row.output), "every certain byte has been given"
        return self._decoder.context(self._row)


def read_prompt(engine: Engine, prompt: bytes, state: ByteLMState | None, cache: PrefixCache | None = None) -> Context:
    """The context after `prompt` read on from `state` (batch 1); an empty prompt as `generate` describes."""
    if not prompt and state is not None:
        if not isinstance(state, Context):
            raise ValueError(
                "the prompt is empty and the state does not hold the distribution of the next byte: "
                "give a prompt of at least one byte, or a Context"
            )
        return state
    prompt = prompt or DOCUMENT_START
    if len(prompt) > SHORT or engine.tolerance > 0:
        if cache is not None and state is None:
            return cache.context(engine.model, prompt)
        return read_pieces(engine.model, prompt, state)
    row = engine.join(state or engine.model.init_state())
    logits = torch.tensor(engine.read([row], [prompt])[0][-1:])
    context = Context(layers=engine.state(row).layers, logits=logits)
    engine.leave(row)
    return context


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What the rows of one call have in common."""

    settings: Sampling
    max_bytes: int
    stops: Sequence[bytes]
    rule: Rule | None
    drafter: Drafter | None
    top_beta: int | None
    cache: PrefixCache | None

    def start(self, decoder: Decoder, prompt: bytes, seed: int, state: ByteLMState | None) -> Row:
        """Read a prompt and let it join."""
        sampler = Sampler(self.settings, seed)
        context = read_prompt(decoder.engine, prompt, state, self.cache)
        cursor = Cursor(
            sampler=sampler,
            left=self.max_bytes,
            recent=prompt[-sampler.window :] if sampler.window else b"",
            rule=self.rule,
            state=self.rule.start if self.rule else 0,
        )
        drafter = self.drafter
        draft = None if drafter is None else Draft(drafter.begin(prompt), drafter.cost, self.top_beta)
        return decoder.join(context, cursor, stops=StopMatcher(self.stops), draft=draft)


def _plan(
    max_bytes: int,
    stop: Text | Sequence[Text],
    constraint: Rule | None,
    drafter: Drafter | ByteLM | SubwordLM | str | None,
    top_beta: int | None,
    cache: PrefixCache | None,
    sampling: SamplingOptions,
) -> _Plan:
    expect_integer("max_bytes", max_bytes, least=0)
    if top_beta is not None:
        expect_integer("top_beta", top_beta, least=1)
        if drafter is None:
            raise ValueError("top_beta accepts a drafter's guesses, but there is no drafter; give one")
    if constraint is not None and (fewest := constraint.shortest(constraint.start)) > max_bytes:
        raise ValueError(f"the constraint needs at least {fewest} bytes, but max_bytes is {max_bytes}")
    return _Plan(
        settings=Sampling(**sampling),
        max_bytes=max_bytes,
        stops=_stops(stop),
        rule=constraint,
        drafter=_drafter(drafter),
        top_beta=top_beta,
        cache=cache,
    )


def _drafter(drafter: Drafter | ByteLM | SubwordLM | str | None) -> Drafter | None:
    if drafter is None:
        return None
    if isinstance(drafter, ByteLM):
        return ByteDrafter(drafter)
    if isinstance(drafter, SubwordLM):
        return SubwordDrafter(drafter.model, drafter.subwords)
    if isinstance(drafter, str):
        if drafter != "lookup":
            raise ValueError(f"drafter={drafter!r} is not known; give 'lookup', a model or a Drafter")
        return LookupDrafter()
    if not hasattr(drafter, "begin"):
        raise ValueError(f"drafter is a {type(drafter).__name__}; give 'lookup', a model or a Drafter")
    return drafter


def as_bytes(name: str, text: Text) -> bytes:
    """The bytes of bytes or str (UTF-8; surrogate escapes are the bytes they stand for). Raises ValueError."""
    if isinstance(text, str):
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} holds a lone surrogate, which has no UTF-8 bytes: {error}") from error
    if not isinstance(text, (bytes, bytearray)):
        raise ValueError(f"{name} must be bytes or str, got {type(text).__name__}")
    return bytes(text)


def _stops(stop: Text | Sequence[Text]) -> list[bytes]:
    texts = [stop] if isinstance(stop, (bytes, bytearray, str)) else stop
    stops = [as_bytes("stop", text) for text in texts]
    if not all(stops):
        raise ValueError("stop holds an empty string, which would end every output at once; leave it out")
    return stops


def _seeds(seed: int | Sequence[int] | None, count: int) -> Sequence[int]:
    if seed is None:
        return [secrets.randbits(64) for _ in range(count)]
    if not isinstance(seed, Sequence):
        return [seed] * count
    if len(seed) != count:
        raise ValueError(f"seed has {len(seed)} numbers for {count} prompts; give one, or one for each prompt")
    return seed


def _states(state: ByteLMState | None, count: int) -> Sequence[ByteLMState | None]:
    if state is None or (count == 1 and state.batch == 1):
        return [state] * count
    if state.batch not in (1, count):
        raise ValueError(f"state has {state.batch} rows for {count} prompts; give one row, or one for each prompt")
    return [state.rows([i if state.batch > 1 else 0]) for i in range(count)]
