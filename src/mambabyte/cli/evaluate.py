"""`mambabyte evaluate`: bits per byte of any files, and tasks of lm-evaluation-harness."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from mambabyte.cli.console import UsageError, print_json, printable
from mambabyte.cli.device import open_any

if TYPE_CHECKING:
    from mambabyte.evaluation import Report
    from mambabyte.evaluation.plan import Plan
    from mambabyte.models import ByteLM, SubwordLM

Many = Parameter(consume_multiple=True, negative=())
AtLeastOne = Parameter(validator=Number(gte=1))
SHOWN = 40  # files that people see; --json gives them all


def evaluate(
    model: str,
    /,
    *,
    data: Annotated[list[str] | None, Many] = None,
    tasks: Annotated[list[str] | None, Many] = None,
    mode: Literal["stream", "window", "sliding"] = "stream",
    context: int | None = None,
    stride: int | None = None,
    batch: Annotated[int | None, AtLeastOne] = None,
    task_data: Path | None = None,
    shots: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    limit: Annotated[int | None, AtLeastOne] = None,
    device: str = "auto",
    xz: bool = True,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Bits per byte of any files, text or binary, in total and one by one, and scores on tasks; give --data or --tasks.

    Parameters
    ----------
    model
        A model folder or the folder of a training run, of bytes or of subwords; the latter only with --data as a
        stream.
    data
        Files, folders, globs, prepared sets and whatever `mambabyte prepare` reads; every file is a document, every
        byte is scored once, and the first from what the model expects after one newline.
    tasks
        Tasks of lm-evaluation-harness by name, such as lambada_openai,hellaswag; needs the extra "eval".
    mode
        stream: the model remembers the whole file. window: it starts anew every CONTEXT bytes. sliding: windows of
        CONTEXT bytes every STRIDE bytes, of which the last STRIDE bytes count.
    context
        Bytes of a window; 8192 unless given.
    stride
        Bytes from one sliding window to the next; half the context unless given.
    batch
        Files or windows read side by side; 8 unless given.
    task_data
        A folder of JSON lines from which known tasks are taken, without a network.
    shots
        Examples before each question of a task.
    limit
        Only so many items of each task.
    device
        cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.
    xz
        Compress each file with xz -9 as well, for comparison.
    json
        Print one JSON object, with every file, last.
    """
    from mambabyte.evaluation.plan import Plan
    from mambabyte.models import ByteLM

    if not data and not tasks:
        raise UsageError("there is nothing to evaluate on; give --data PATH... or --tasks NAME,...")
    try:
        plan = Plan(mode=mode, context=context, stride=stride)
    except ValueError as error:
        raise UsageError(str(error)) from error
    measure = None if data is None else _measurement(data, plan, batch, xz)
    opened = open_any(model, device)
    result: dict[str, Any] = {"model": model}
    if measure is not None:
        report = measure(opened)
        result |= report.to_dict()
        if not json:
            _show(report)
    if tasks:
        if not isinstance(opened, ByteLM):
            raise UsageError(f"{model}: a model of subwords, a drafter; --tasks are for models of bytes")
        names = [name.strip() for given in tasks for name in given.split(",") if name.strip()]
        result["tasks"] = _run_tasks(opened, names, task_data, shots, limit)
        if not json:
            _show_tasks(result["tasks"])
    if json:
        print_json(result)


def _measurement(
    data: list[str], plan: "Plan", batch: int | None, xz: bool
) -> "Callable[[ByteLM | SubwordLM], Report]":
    """Bits per byte of a model on these files, which are opened now: a missing one is found before a model is read."""
    from mambabyte.data import Corpus
    from mambabyte.evaluation import evaluate as bits_per_byte

    corpus = Corpus.open(data)

    def measure(model: "ByteLM | SubwordLM") -> "Report":
        with reading_bar(corpus.nbytes) as progress:
            return bits_per_byte(
                model,
                corpus,
                mode=plan.mode,
                context=plan.context,
                stride=plan.stride,
                batch=batch,
                xz=xz,
                progress=progress,
            )

    return measure


def _run_tasks(
    model: "ByteLM", names: list[str], folder: Path | None, shots: int | None, limit: int | None
) -> dict[str, dict[str, float]]:
    from mambabyte.evaluation.harness import run_tasks
    from mambabyte.generation import generate

    return run_tasks(model, names, generate, folder=folder, shots=shots, limit=limit)


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


def _show_tasks(tasks: dict[str, dict[str, float]]) -> None:
    """One line a metric, with its standard error where there is one."""
    for task, metrics in tasks.items():
        for name, value in metrics.items():
            if not name.endswith("_stderr"):
                error = metrics.get(f"{name}_stderr")
                print(f"{task}  {name}  {value:.4f}" + ("" if error is None else f" \u00b1 {error:.4f}"))


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
