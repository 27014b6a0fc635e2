"""`mambabyte generate`: continue a prompt, byte by byte."""

import dataclasses
import signal
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from mambabyte.cli.console import UsageError, print_json
from mambabyte.cli.device import open_any, open_model

if TYPE_CHECKING:
    from mambabyte.generation import SamplingOptions, Stream
    from mambabyte.generation.cursor import Rule
    from mambabyte.models import ByteLM, SubwordLM

STDIN = Path("-")

Flag = Annotated[bool, Parameter(negative=())]
AnyText = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


def generate(
    model: str,
    /,
    *,
    prompt: AnyText = None,
    prompt_file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    max_bytes: Annotated[int, Parameter(validator=Number(gte=0))] = 256,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    repetition_window: int = 64,
    stop: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True, negative=())] = None,
    seed: Annotated[int | None, Parameter(validator=Number(gte=0, lt=2**64))] = None,
    drafter: str | None = None,
    top_beta: int | None = None,
    utf8: Flag = False,
    regex: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    json_schema: str | None = None,
    load_state: Path | None = None,
    save_state: Path | None = None,
    weights: Literal["float32", "bfloat16", "int8"] | None = None,
    device: str = "auto",
    raw: Flag = False,
    json: Flag = False,
) -> None:
    """Continue a prompt, byte by byte, and print the continuation as it comes.

    The prompt is --prompt, the bytes of --prompt-file, or else standard input if that is no terminal.

    Parameters
    ----------
    model
        A model folder or the folder of a training run.
    prompt
        Text to continue; an empty one is the beginning of a document.
    prompt_file
        A file of any bytes to continue; - is standard input.
    max_bytes
        The most bytes to generate.
    temperature
        0 always takes the most likely byte; 1 draws from the model's distribution.
    top_k
        Draw from the K most likely bytes only.
    top_p
        Draw from the most likely bytes that together have probability P.
    min_p
        Draw from the bytes at least P times as likely as the most likely one.
    repetition_penalty
        Above 1 makes bytes that came lately less likely.
    repetition_window
        How many bytes back counts as lately.
    stop
        End before this text appears; may be given several times.
    seed
        The same seed gives the same bytes.
    drafter
        What guesses ahead, for the same bytes in less time: a smaller model of bytes or of subwords, or "lookup" in
        the text so far.
    top_beta
        Accept guesses among the BETA most likely bytes: faster, no longer the model's distribution.
    utf8
        Generate valid UTF-8 only.
    regex
        Generate text that this regular expression matches.
    json_schema
        Generate JSON that this schema, a file or its text, accepts.
    load_state
        Go on from a state that --save-state wrote; without a prompt, as if there had been no break.
    save_state
        Write what the model has read, prompt and continuation, to a file.
    weights
        Round the matrices to bfloat16 or, on a CPU, int8: faster and slightly different. On a GPU, whose fast engine
        computes in 16 bits, a run that trained in bfloat16 generates in it too unless this says float32.
    device
        cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
    raw
        Print the exact bytes. Otherwise text is printed: invalid UTF-8 as U+FFFD, and on a terminal control characters
        as escapes.
    json
        Print one JSON object, last, and nothing else.
    """
    from mambabyte.checkpoints import load_state as read_state
    from mambabyte.checkpoints import save_state as write_state
    from mambabyte.generation import SamplingOptions, open_engine, stream

    options = SamplingOptions(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        repetition_window=repetition_window,
    )
    _check(options, stop, raw=raw, json=json)
    rule = _constraint(utf8, regex, json_schema, max_bytes)
    text = _prompt(prompt, prompt_file, continues=load_state is not None)
    opened = open_model(model, device)
    state = None if load_state is None else read_state(load_state, opened)
    start = time.perf_counter()
    engine = open_engine(opened, weights=weights)
    pieces = stream(
        opened,
        text,
        max_bytes=max_bytes,
        stop=stop or (),
        seed=seed,
        state=state,
        constraint=rule,
        drafter=_drafter(drafter, top_beta, device),
        top_beta=top_beta,
        engine=engine,
        **options,
    )
    prompt_seconds = time.perf_counter() - start
    printed = _print(pieces, raw=raw, silent=json)
    if save_state is not None:
        write_state(pieces.context, save_state, opened)
    if json:
        reading = {"prompt_bytes": len(text), "prompt_seconds": prompt_seconds}
        chosen = {"engine": engine.name, "weights": engine.weights}
        print_json(printed.to_dict() | reading | chosen | {"decoding": pieces.statistics.to_dict()})
    if printed.end == "interrupted":
        raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True)
class Printed:
    """What came out, how long it took, and the seed to get it again; `end` is one of `Stream.end` or "interrupted"."""

    output: bytes
    end: str
    seconds: float
    seed: int

    def to_dict(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "text": self.output.decode("utf-8", "replace"),
            "bytes": b64encode(self.output).decode("ascii"),
            "bytes_per_second": len(self.output) / self.seconds,
            "seconds": self.seconds,
            "end": self.end,
            "seed": self.seed,
        }


def _check(options: "SamplingOptions", stop: list[str] | None, *, raw: bool, json: bool) -> None:
    from mambabyte.generation import Sampling

    if raw and json:
        raise UsageError("--raw prints bytes and --json prints JSON: give one of them")
    if stop is not None and "" in stop:
        raise UsageError("--stop must not be empty: it would end the output before its first byte")
    try:
        Sampling(**options)
    except ValueError as error:
        raise UsageError(f"--{str(error).replace('_', '-', 1)}") from error


def _constraint(utf8: bool, regex: str | None, json_schema: str | None, max_bytes: int) -> "Rule | None":
    """The one constraint that is asked for, if any."""
    from mambabyte.generation import constraints

    if utf8 + (regex is not None) + (json_schema is not None) > 1:
        raise UsageError("--utf8, --regex and --json-schema constrain the output in three ways: give one of them")
    try:
        rule = None
        if regex is not None:
            rule = constraints.regex(regex)
        elif json_schema is not None:
            rule = constraints.json_schema(_text_or_file(json_schema))
        elif utf8:
            rule = constraints.utf8()
    except ValueError as error:
        raise UsageError(str(error)) from error
    if rule is not None and (fewest := rule.shortest(rule.start)) > max_bytes:
        raise UsageError(f"--max-bytes {max_bytes} is too small: the constraint needs at least {fewest} bytes")
    return rule


def _text_or_file(given: str) -> str:
    """JSON text as it is, anything else as the name of a file that holds some."""
    if given.lstrip().startswith(("{", "true")):
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--json-schema {given!r}: no JSON object, and no file ({error.strerror}); give one"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--json-schema {given!r}: the file is no text in UTF-8: {error}") from error


def _drafter(name: str | None, top_beta: int | None, device: str) -> "ByteLM | SubwordLM | str | None":
    """ "lookup", or the model of a folder."""
    if top_beta is not None and (name is None or top_beta < 1):
        raise UsageError("--top-beta is at least 1 and judges the guesses of a --drafter: give both")
    if name is None or name == "lookup":
        return name
    return open_any(name, device)


def _prompt(prompt: str | None, file: Path | None, *, continues: bool) -> bytes:
    """The bytes to continue; standard input is left alone when a saved state is continued without a prompt."""
    from mambabyte.generation.api import as_bytes

    if prompt is not None and file is not None:
        raise UsageError("--prompt and --prompt-file are both given: give one of them")
    if prompt is not None:
        return as_bytes("--prompt", prompt)
    if file is not None and file != STDIN:
        return file.read_bytes()
    if file is None and (continues or sys.stdin is None or sys.stdin.isatty()):
        return b""
    return sys.stdin.buffer.read()


def _print(pieces: "Stream", *, raw: bool, silent: bool) -> Printed:
    """Print the pieces as they come, until they end or Ctrl-C."""
    from mambabyte.generation.text import IncrementalText

    decoder = IncrementalText()
    output = bytearray()
    start = time.perf_counter()
    with _interruptible() as interrupted:
        for piece in pieces:
            output += piece
            if not silent:
                _write(piece if raw else _encode(decoder.push(piece)))
            if interrupted:
                break
    seconds = time.perf_counter() - start
    if not silent and not raw:
        _write(_encode(decoder.finish()))
        if sys.stdout.isatty() and not output.endswith(b"\n"):
            _write(b"\n")
    return Printed(bytes(output), pieces.end or "interrupted", seconds, pieces.seed)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C, which then stops us between two bytes: in the middle of one the state is not
    whole. A second Ctrl-C does not wait."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    previous = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def _encode(text: str) -> bytes:
    from mambabyte.generation.text import visible

    shown = visible(text) if sys.stdout.isatty() else text
    return shown.encode(sys.stdout.encoding if sys.stdout.isatty() else "utf-8", "backslashreplace")


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
