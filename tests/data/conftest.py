"""Corpora on disk from lists of documents."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


def write_documents(folder: Path, documents: Sequence[bytes]) -> Path:
    """One file per document, in an order that sorting keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, content in enumerate(documents):
        (folder / f"{index:06d}").write_bytes(content)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[bytes]], Path]:
    return lambda documents: write_documents(tmp_path / "documents", documents)
