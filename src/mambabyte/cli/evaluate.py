"""`mambabyte evaluate`: bits per byte of any files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from mambabyte.cli.console import UsageError, print_json, printable
from mambabyte.cli.device import open_model

if TYPE_CHECKING:
    from mambabyte.evaluation import Report

SHOWN = 40  # files that people see; --json gives them all


def evaluate(
    model: str,
    /,
    *,
    data: Annotated[list[str], Parameter(consume_multiple=True, negative=())],
    mode: Literal["stream", "window", "sliding"] = "stream",
    context: int | None = None,
    stride: int | None = None,
    batch: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    device: str = "auto",
    xz: bool = True,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Bits per byte of any files, text or binary, in total and one by one; every byte is scored once.

    Parameters
    ----------
    model
        A model folder or the folder of a training run.
    data
        Files, folders or globs; every file is a document, and its first byte is scored from what the model expects
        after one newline.
    mode
        stream: the model remembers the whole file. window: it starts anew every CONTEXT bytes. sliding: windows of
        CONTEXT bytes every STRIDE bytes, of which the last STRIDE bytes count.
    context
        Bytes of a window; 8192 unless given.
    stride
        Bytes from one sliding window to the next; half the context unless given.
    batch
        Files or windows read side by side; 8 unless given.
    device
        cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
    xz
        Compress each file with xz -9 as well, for comparison.
    json
        Print one JSON object, with every file, last.
    """
    from mambabyte.data import Corpus
    from mambabyte.evaluation import evaluate as bits_per_byte
    from mambabyte.evaluation.plan import Plan

    try:
        Plan(mode=mode, context=context, stride=stride)
    except ValueError as error:
        raise UsageError(str(error)) from error
    corpus = Corpus.open(data)
    opened = open_model(model, device)
    with reading_bar(corpus.nbytes) as progress:
        report = bits_per_byte(
            opened, corpus, mode=mode, context=context, stride=stride, batch=batch, xz=xz, progress=progress
        )
    if json:
        print_json({"model": model, **report.to_dict()})
    else:
        _show(report)


@contextmanager
def reading_bar(total: int) -> Iterator[Callable[[int], object] | None]:
    """A bar on the terminal of stderr while the model reads, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("reading"), BarColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _show(report: "Report") -> None:
    """A table on a terminal, aligned plain lines elsewhere, and one line of totals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=1 << 16)  # one line a file, however long its name
    table = Table(box=box.ROUNDED if console.is_terminal else None, pad_edge=False)
    for column in ("file", "bytes", "bits per byte", "xz -9"):
        table.add_column(column, justify="left" if column == "file" else "right", overflow="fold")
    for file in report.files[:SHOWN]:
        table.add_row(*_cells(printable(file.name), file.bytes, file.bits_per_byte, file.xz_bits_per_byte))
    if len(report.files) > SHOWN:
        table.add_row(f"and {len(report.files) - SHOWN} more (--json lists them all)")
    table.add_section()
    table.add_row(*_cells("total", report.bytes, report.bits_per_byte, report.xz_bits_per_byte), style="bold")
    console.print(table)
    print(_closing(report))


def _cells(name: str, size: int, bits: float | None, xz: float | None) -> tuple[str, ...]:
    from rich.markup import escape

    return (escape(name), f"{size:,}", *("-" if value is None else f"{value:.4f}" for value in (bits, xz)))


def _closing(report: "Report") -> str:
    """How it was measured, and the words."""
    window = "" if report.context is None else f", windows of {report.context:,} bytes"
    stride = "" if report.stride is None else f" every {report.stride:,}"
    perplexity = "" if report.word_perplexity is None else f", {report.word_perplexity:.5g} word perplexity"
    empty = f"; {report.empty_files} empty files left out" if report.empty_files else ""
    return (
        f"{report.mode}{window}{stride}: {report.words:,} words{perplexity}, "
        f"{report.bytes_per_second:,.0f} bytes/s{empty}"
    )
