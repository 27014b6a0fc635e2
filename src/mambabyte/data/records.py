"""Rows with a text column as documents: JSON lines, Parquet files and Hugging Face datasets."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

_LONGEST_LINE = 1 << 28
_EXAMPLES = 5
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which some editors put first


@dataclass
class Tally:
    """What was left out: empty documents, and records that are broken, the first few with their places."""

    empty: int = 0
    broken: int = 0
    examples: list[str] = field(default_factory=list)
    strict: bool = False

    def broken_record(self, where: str, why: str) -> None:
        """Count a record that has no text to give. Raises ValueError instead if the tally is strict."""
        if self.strict:
            refuse_broken(f"{where}: {why}")
        self.broken += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where}: {why}")


def refuse_broken(example: str) -> NoReturn:
    """Raise ValueError for a broken record, which a strict reader does not leave out."""
    raise ValueError(f"{example}; without --strict such records are counted and left out")


def counted(count: int, noun: str) -> str:
    """A number and what it counts: "1 record", "2,000 records"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def refuse_array(name: str, head: bytes) -> None:
    """Raise ValueError if a JSON file that begins with `head` is one array, of which no line would be a record."""
    if head.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        raise ValueError(
            f"{name}: is one JSON array, and JSON lines are needed, an object on each line; "
            "`jq -c '.[]'` turns the one into the other"
        )


def json_lines(name: str, stream: BinaryIO, column: str, tally: Tally) -> Iterator[bytes]:
    """The text under `column` of each line as UTF-8; blank lines are passed over, broken ones tallied.

    A lone surrogate, which JSON can write and UTF-8 cannot, becomes the three bytes UTF-8 would use for it (WTF-8).
    """
    number = 0
    while line := stream.readline(_LONGEST_LINE):
        number += 1
        where = f"{name}, line {number}"
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            _skip_line(stream)
            tally.broken_record(where, f"is longer than {_LONGEST_LINE} bytes")
            continue
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # what bad UTF-8, bad JSON and endless nesting raise
            tally.broken_record(where, f"is not JSON: {error}")
            continue
        if not isinstance(row, dict):
            tally.broken_record(where, f"is a JSON {type(row).__name__} and not an object")
            continue
        content = _content(row.get(column))
        if content is None:
            tally.broken_record(where, f"has no text under {column!r}")
        else:
            yield content


def parquet_rows(path: str, column: str, tally: Tally) -> Iterator[bytes]:
    """The text or binary values of one column of a Parquet file; nulls are tallied as broken."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading Parquet needs pyarrow: pip install 'mambabyte-lm[data]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise ValueError(f"{path}: has no column {column!r}; it has {', '.join(names)}")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                # As binary, because a text column of a careless writer need not be valid UTF-8.
                for value in batch.column(0).cast(arrow.large_binary()).to_pylist():
                    row += 1
                    if value is None:
                        tally.broken_record(f"{path}, row {row}", f"has no text under {column!r}")
                    else:
                        yield value
    except arrow.ArrowException as error:
        raise ValueError(f"{path}: cannot be read as Parquet text: {error}") from error


def dataset_rows(name: str, column: str, tally: Tally, *, split: str, subset: str | None) -> Iterator[bytes]:
    """The text of one column of a Hugging Face dataset: a name on the hub (`owner/name@revision`) or a local folder."""
    for number, row in enumerate(_open_dataset(name, split=split, subset=subset), start=1):
        if column not in row:
            raise ValueError(f"hf://{name}: has no column {column!r}; it has {', '.join(row)}")
        content = _content(row[column])
        if content is None:
            tally.broken_record(f"hf://{name}, row {number}", f"has no text under {column!r}")
        else:
            yield content


def _open_dataset(name: str, *, split: str, subset: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"hf://{name}: reading datasets needs the package: pip install 'mambabyte-lm[data]'"
        ) from error
    folder = Path(name)
    try:
        if not any((folder / saved).is_file() for saved in ("dataset_dict.json", "state.json")):
            repository, _, revision = (name, "", "") if folder.exists() else name.partition("@")
            return datasets.load_dataset(repository, subset, split=split, revision=revision or None, streaming=True)
        found = datasets.load_from_disk(name)
    except (OSError, ValueError) as error:  # what datasets raises for a split or subset that is not there
        raise ValueError(f"hf://{name}: cannot be opened: {error}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise ValueError(f"hf://{name}: has no split {split!r}; it has {', '.join(found)}")
    return found[split]


def _content(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return value if isinstance(value, bytes) else None


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass
