import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambabyte.data import Corpus
from tests.data.conftest import write_documents

DOCUMENTS = st.lists(st.binary(max_size=40), min_size=1, max_size=12).filter(any)


@settings(max_examples=40)
@given(documents=DOCUMENTS, data=st.data())
def test_reads_equal_slices_of_the_joined_documents(documents, data, tmp_path_factory):
    corpus = Corpus.open([write_documents(tmp_path_factory.mktemp("d"), documents)])
    kept = [document for document in documents if document]
    joined = b"".join(kept)
    assert (corpus.documents, corpus.nbytes, corpus.empty) == (len(kept), len(joined), len(documents) - len(kept))
    assert corpus.offsets.dtype == np.int64
    assert corpus.offsets.tolist() == [0, *np.cumsum([len(document) for document in kept]).tolist()]
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    assert corpus.read(start, stop).tobytes() == joined[start:stop]
    assert corpus.document_starts(start, stop).tolist() == [o for o in corpus.offsets[:-1] if start <= o < stop]
    assert [corpus.document(i).tobytes() for i in range(corpus.documents)] == kept


def test_folders_are_walked_in_byte_order_without_hidden_files(tmp_path):
    for name in ["b/2", "b/10", "B/x", "a.txt", "\u00e9 and space", ".git/config", "b/.hidden", "c/d/e/f"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [name.removeprefix(f"{tmp_path}/") for name in Corpus.open([tmp_path]).names]
    assert names == ["B/x", "a.txt", "b/10", "b/2", "c/d/e/f", "\u00e9 and space"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("x")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/self").symlink_to("self")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "zlink").symlink_to("real/file")
    os.mkfifo(tmp_path / "pipe")
    assert list(Corpus.open([tmp_path]).names) == [f"{tmp_path}/again/file", f"{tmp_path}/zlink"]


def test_globs_recurse_and_literal_names_win(tmp_path):
    for name in ["a/1.py", "a/b/2.py", "a/b/3.txt", "[x]*"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert Corpus.open([tmp_path / "**/*.py"]).documents == 2
    assert Corpus.open([tmp_path / "a/**"]).documents == 3
    assert Corpus.open([tmp_path / "[x]*"]).document(0).tobytes() == b"[x]*"


def test_names_that_are_not_utf8_are_read_and_printable(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"x")
    corpus = Corpus.open([tmp_path])
    assert corpus.names[0].endswith("caf\\xe9")
    assert corpus.names[0].encode()
    assert corpus.read(0, 1).tobytes() == b"x"


def test_what_is_missing_or_empty_is_named(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=r"empty: no bytes here, only empty documents \(1\)"):
        Corpus.open([tmp_path / "empty"])
    with pytest.raises(ValueError, match="nothing: there is no such file or folder"):
        Corpus.open([tmp_path / "nothing"])
    with pytest.raises(ValueError, match=r"\*\.py: no file matches"):
        Corpus.open([tmp_path / "*.py"])
    with pytest.raises(ValueError, match="name at least one"):
        Corpus.open([])


@pytest.mark.parametrize("change", ["grow", "shrink", "delete", "replace"])
@pytest.mark.parametrize("read_before", [True, False])
def test_a_file_that_changes_is_named(tmp_path, change, read_before):
    path = tmp_path / "changing"
    path.write_bytes(b"0123456789")
    corpus = Corpus.open([path])
    if read_before:
        corpus.read(0, 10)
    if change == "delete":
        path.unlink()
    elif change == "replace":
        (tmp_path / "new").write_bytes(b"01234")
        (tmp_path / "new").rename(path)
    else:
        os.truncate(path, 20 if change == "grow" else 5)
    with pytest.raises(ValueError, match="changing: "):
        corpus.read(0, 10)
    with pytest.raises(ValueError, match="changing: "):
        corpus.document(0)


def test_thousands_of_files_need_few_descriptors(tmp_path):
    write_documents(tmp_path / "many", [b"ab"] * 1500)
    code = (
        "import resource, sys; from mambabyte.data import Corpus\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
        "corpus = Corpus.open([sys.argv[1]])\n"
        "assert corpus.read(0, corpus.nbytes).tobytes() == b'ab' * 1500"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "many"], check=True, timeout=60)


def test_a_sparse_file_of_10_gb_is_not_read_whole(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(5 * 10**9)
        file.write(b"middle")
        file.truncate(10**10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    corpus = Corpus.open([path])
    assert corpus.read(5 * 10**9 - 1, 5 * 10**9 + 7).tobytes() == b"\0middle\0"
    assert corpus.document(0)[5 * 10**9] == ord("m")
    assert len(corpus.fingerprint) == 64
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - before) * 512 < 10**8


@settings(max_examples=40)
@given(documents=DOCUMENTS, data=st.data())
def test_fingerprint_survives_a_move_and_sees_a_changed_byte(documents, data, tmp_path_factory):
    folder = write_documents(tmp_path_factory.mktemp("d"), documents)
    before = Corpus.open([folder]).fingerprint
    moved = folder.rename(folder.with_name(folder.name + " moved"))
    assert Corpus.open([moved]).fingerprint == before
    index = data.draw(st.sampled_from([i for i, document in enumerate(documents) if document]))
    content = bytearray(documents[index])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1
    (moved / f"{index:06d}").write_bytes(content)
    assert Corpus.open([moved]).fingerprint != before
