"""Rows with a text column as documents: JSON lines, Parquet files and Hugging Face datasets."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

_LONGEST_LINE = 1 << 28
_EXAMPLES = 5


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
            raise ValueError(f"{where}: {why}; without --strict such records are counted and left out")
        self.broken += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{where}: {why}")


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
            line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that some editors put first
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
        if (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(name)
            if split not in splits:
                raise ValueError(f"hf://{name}: has no split {split!r}; it has {', '.join(splits)}")
            return splits[split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(name)
        repository, _, revision = (name, "", "") if folder.exists() else name.partition("@")
        return datasets.load_dataset(repository, subset, split=split, revision=revision or None, streaming=True)
    except OSError as error:
        raise ValueError(f"hf://{name}: cannot be opened: {error}") from error


def _content(value: object) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return value if isinstance(value, bytes) else None


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
        pass
