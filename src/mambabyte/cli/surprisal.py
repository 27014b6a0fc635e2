"""`mambabyte surprisal`: bits for every byte of a file."""

import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from mambabyte.cli.console import UsageError, print_json, printable
from mambabyte.cli.device import open_model
from mambabyte.cli.evaluate import reading_bar

if TYPE_CHECKING:
    from rich.style import Style
    from rich.text import Text

    from mambabyte.evaluation import Surprisal
    from mambabyte.evaluation.surprisal import Cell


def surprisal(
    model: str,
    file: str,
    /,
    *,
    mode: Literal["stream", "window", "sliding"] = "stream",
    context: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    show: Annotated[int, Parameter(validator=Number(gte=0))] = 4000,
    npz: Path | None = None,
    html: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Bits for every byte of a file, text or binary: a heat map on a terminal, else lines of offset, byte and bits.

    Parameters
    ----------
    model
        A model folder or the folder of a training run.
    file
        Any file, taken as it lies. Its first byte is scored from what the model expects after one newline.
    mode
        As in evaluate: stream, window or sliding.
    context
        Bytes of a window; 8192 unless given.
    stride
        Bytes from one sliding window to the next; half the context unless given.
    device
        cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
    show
        Bytes of the heat map on the terminal; the other forms always give all.
    npz
        Write a NumPy archive here: data (the bytes) and bits.
    html
        Write a page here that any browser opens without a network.
    json
        Print one JSON object, with the bits of every byte, last.
    """
    from mambabyte.evaluation import surprisal as bits_of_bytes
    from mambabyte.evaluation.plan import Plan

    try:
        Plan(mode=mode, context=context, stride=stride)
    except ValueError as error:
        raise UsageError(str(error)) from error
    _refuse_clashes(Path(file), npz, html)
    size = Path(file).stat().st_size
    opened = open_model(model, device)
    with reading_bar(size) as progress:
        found = bits_of_bytes(opened, file, mode=mode, context=context, stride=stride, progress=progress)
    if npz is not None:
        _replace(npz, found.save_npz)
    if html is not None:
        _replace(html, lambda path: _write_page(found, path))
    if json:
        print_json({"model": model, **found.to_dict()})
    elif npz is not None or html is not None:
        print(f"{_total(found)}; wrote {' and '.join(printable(str(path)) for path in (npz, html) if path)}")
    else:
        _show(found, show)


def _refuse_clashes(file: Path, *outputs: Path | None) -> None:
    """Raise UsageError if an output would replace the file that is read, or the other output."""
    taken = [file.resolve()]
    for path in outputs:
        if path is None:
            continue
        if path.resolve() in taken:
            raise UsageError(f"{path} is named twice; the file, --npz and --html must be three different files")
        taken.append(path.resolve())


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """A file is there whole or as it was before."""
    aside = path.with_name(f"{path.name}.tmp")
    try:
        write(aside)
        aside.replace(path)
    except OSError as error:
        error.filename = str(path)  # not the name of the file beside it
        raise
    finally:
        aside.unlink(missing_ok=True)


def _write_page(found: "Surprisal", path: Path) -> None:
    from mambabyte.evaluation.surprisal_page import page

    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(page(found))


def _show(found: "Surprisal", show: int) -> None:
    """A heat map on a terminal; offset, byte and bits, one line each, elsewhere."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        rows = zip(found.data.tolist(), found.bits.tolist(), strict=True)
        sys.stdout.writelines(f"{i}\t{byte:02x}\t{bits:.6f}\n" for i, (byte, bits) in enumerate(rows))
        return
    console.print(_heat_map(found.cells(show)), soft_wrap=True)
    console.print(_legend())
    rest = len(found.bits) - show
    print(_total(found) + (f"; {rest:,} more bytes are not shown (--html shows all)" if rest > 0 else ""))


def _heat_map(cells: Iterable["Cell"]) -> "Text":
    from rich.text import Text

    from mambabyte.evaluation import heat

    styles = _styles()
    text = Text()
    for level, run in itertools.groupby(cells, key=lambda cell: heat.level(cell.bits)):
        for line in "".join(cell.text + "\n" * cell.is_newline for cell in run).splitlines(keepends=True):
            text.append(line.removesuffix("\n"), styles[level])
            text.append("\n" * line.endswith("\n"))
    return text


def _legend() -> "Text":
    from rich.text import Text

    from mambabyte.evaluation import heat

    text = Text("bits ")
    for level, style in enumerate(_styles()):
        text.append(f" {heat.label(level)} ", style)
    return text


def _styles() -> "list[Style]":
    from rich.color import Color
    from rich.style import Style

    from mambabyte.evaluation import heat

    coloured = [
        Style(color=Color.from_rgb(*heat.foreground(level)), bgcolor=Color.from_rgb(*heat.background(level)))
        for level in range(1, heat.LEVELS)
    ]
    return [Style(), *coloured]  # what is no surprise keeps the colours of the terminal


def _total(found: "Surprisal") -> str:
    return f"{printable(found.name)}: {len(found.bits):,} bytes, {found.bits_per_byte:.4f} bits per byte"
