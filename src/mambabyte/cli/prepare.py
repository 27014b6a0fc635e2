"""`mambabyte prepare`: any source of bytes as a memory-mapped set of shards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from mambabyte.cli.console import UsageError, print_json, print_table, printable


def prepare(
    *source: str,
    out: Path,
    column: str | None = None,
    split: str = "train",
    subset: str | None = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
    raw: Annotated[bool, Parameter(negative=())] = False,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write any sources of bytes to a folder that training and evaluation map into memory.

    Stopped at any moment, it goes on from there when the same command is run again.

    Parameters
    ----------
    source
        Files, folders, globs, - for standard input, or hf://NAME for a Hugging Face dataset (a name on the hub or a
        folder). gzip, bzip2, xz, zstd and tar are read through, and each file or member is a document. SOURCE#COLUMN
        reads rows instead: JSON lines, Parquet, datasets.
    out
        The folder to write; train on it by naming it.
    column
        The column of rows that holds the text, for every source that names none.
    split
        Which split of a dataset.
    subset
        Which subset (configuration) of a dataset.
    strict
        Stop at a row that is broken or has no text, instead of counting it.
    raw
        Take every file as it lies: do not decompress or unpack.
    overwrite
        Replace a set in the folder that was prepared from something else.
    json
        Print one JSON object, last.
    """
    from mambabyte.data import describe
    from mambabyte.data.prepare import prepare as write

    if not source:
        raise UsageError("name at least one source: a file, a folder, a glob, - or hf://NAME")
    with _progress() as report:
        write(
            source,
            out,
            column=column,
            split=split,
            subset=subset,
            raw=raw,
            strict=strict,
            overwrite=overwrite,
            report=report,
        )
    described = describe(out)
    if json:
        print_json({"set": str(out), **described})
    else:
        print_table(printable(str(out)), rows(described))


def rows(described: Mapping[str, Any]) -> dict[str, str]:
    """A prepared set for people."""
    from mambabyte.data.records import counted

    table = {
        "bytes": f"{described['bytes']:,}",
        "documents": f"{described['documents']:,}, {described['bytes'] / described['documents']:,.0f} bytes on average",
        "shards": f"{described['shards']:,}",
        "from": ", ".join(described["source"]["sources"]),
    }
    if described["empty"]:
        table["left out"] = counted(described["empty"], "empty document")
    if described["broken"]:
        table["broken rows"] = f"{described['broken']:,}, such as {printable(described['examples'][0])}"
    return table


@contextmanager
def _progress() -> Iterator[Callable[[int, int], object] | None]:
    """Bytes and documents so far on the terminal of stderr, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.completed:,} bytes, {task.fields[documents]:,} documents"), TransferSpeedColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, documents=0)
        yield lambda nbytes, documents: bar.update(task, completed=nbytes, documents=documents)
