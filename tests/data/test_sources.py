import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambabyte.data import Corpus
from mambabyte.data.prepare import prepare
from mambabyte.data.sources import Source, parse_source

DOCUMENTS = st.lists(
    st.one_of(
        st.binary(max_size=60), st.sampled_from([b"", b"\0", b"\r\n", b"a\r\nb\0\xff", b"\xed\xa0\x80", b"x" * 40000])
    ),
    min_size=1,
    max_size=6,
).filter(any)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def zstd(content: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="zstandard (extra `data`) is not installed")
    return zstandard.ZstdCompressor().compress(content)


COMPRESSIONS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def tar(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def contents(*sources: str | Path) -> list[bytes]:
    corpus = Corpus.open([str(source) for source in sources])
    found = [corpus.document(i).tobytes() for i in range(corpus.documents)]
    assert corpus.read(0, corpus.nbytes).tobytes() == b"".join(found)
    return found


def kept(documents: list[bytes]) -> list[bytes]:
    return [document for document in documents if document]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@FEW
@given(documents=DOCUMENTS, upper=st.booleans())
def test_compressed_files_are_the_documents_they_hold(suffix, documents, upper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    for i, document in enumerate(documents):
        name = f"{i} \u00e9.txt{suffix.upper() if upper else suffix}"
        (folder / name).write_bytes(COMPRESSIONS[suffix](document))
    assert contents(folder) == kept(documents)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_streams_may_be_joined(suffix, tmp_path):
    path = tmp_path / f"joined{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](b"one ") + COMPRESSIONS[suffix](b"two"))
    assert contents(path) == [b"one two"]


HOSTILE_NAMES = [
    "../../outside",
    "/absolute",
    "a b",
    "caf\u00e9",
    "line\nbreak",
    "./same",
    "./same",
    "\udce9",
    "\x1b[31m",
]


@pytest.mark.parametrize("suffix", ["", *COMPRESSIONS])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@settings(FEW, max_examples=8)
@given(documents=DOCUMENTS, names=st.permutations(HOSTILE_NAMES))
def test_archives_are_read_and_never_unpacked(suffix, form, documents, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    archive = tar(list(zip(names, documents, strict=False)), form)
    path = folder / f"archive.tar{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](archive) if suffix else archive)
    out = folder / "out"
    manifest = prepare([str(path)], out)
    assert contents(out) == kept(documents)
    assert manifest.empty == len(documents) - len(kept(documents))
    assert all(name.isprintable() and name.encode() for name in Corpus.open([out]).names)
    assert sorted(os.listdir(folder)) == sorted([path.name, "out"])  # noqa: PTH208
    assert {p.name.partition(".")[0] for p in out.iterdir()} == {"manifest", "shard-00000"}


def test_archives_hold_compressed_files_and_archives_but_no_links(tmp_path):
    inner = tar([("x.gz", gzip.compress(b"inner"))])
    buffer = io.BytesIO(tar([("a.xz", lzma.compress(b"first")), ("b.tgz", gzip.compress(inner))]))
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        for kind, name in [(tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    (tmp_path / "all.tar").write_bytes(buffer.getvalue())
    corpus = Corpus.open([tmp_path / "all.tar"])
    assert contents(tmp_path / "all.tar") == [b"first", b"inner"]
    assert [name.rpartition("all.tar")[2] for name in corpus.names] == ["/a.xz", "/b.tgz/x.gz"]


def test_misnamed_files_stay_what_they_are_and_raw_takes_all_as_they_lie(tmp_path):
    names = ["plain.gz", "plain.tar", "packed", "packed.gz"]
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(b"x", mtime=0) if "packed" in name else b"plain")
    assert contents(tmp_path) == [gzip.compress(b"x", mtime=0), b"x", b"plain", b"plain"]
    prepare([str(tmp_path / "packed.gz")], tmp_path / "raw", raw=True)
    assert contents(tmp_path / "raw") == [gzip.compress(b"x", mtime=0)]


def test_endless_nesting_is_refused(tmp_path):
    content = b"x"
    for _ in range(20):
        content = gzip.compress(content)
    (tmp_path / ("x" + ".gz" * 20)).write_bytes(content)
    with pytest.raises(ValueError, match="more than 8 layers"):
        Corpus.open([tmp_path])


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@FEW
@given(data=st.data())
def test_a_file_that_is_cut_short_is_named(suffix, data, tmp_path_factory):
    whole = COMPRESSIONS[suffix](random.Random(0).randbytes(3000))
    path = tmp_path_factory.mktemp("d") / f"cut{suffix}"
    path.write_bytes(whole[: data.draw(st.integers(8, len(whole) - 1))])
    with pytest.raises(ValueError, match=f"cut{suffix}: is damaged or cut short"):
        Corpus.open([path])


# byte 155 comes after the NUL that ends the checksum: it says nothing
@given(where=st.integers(0, 511).filter(lambda where: where != 155))
@settings(FEW)
def test_a_damaged_archive_header_is_named_wherever_it_is(where, tmp_path_factory):
    archive = bytearray(tar([("a", b"x" * 600), ("b", b"y" * 600)], tarfile.GNU_FORMAT))
    archive[1536 + where] ^= 0x15  # the second header; the first would make the file no archive
    path = tmp_path_factory.mktemp("d") / "bad.tar"
    path.write_bytes(archive)
    with pytest.raises(ValueError, match=r"bad\.tar: is damaged"):
        Corpus.open([path])


@pytest.mark.parametrize("suffix", ["", *COMPRESSIONS])
@pytest.mark.parametrize("members", [1, 2])
def test_an_archive_cut_between_members_is_named(suffix, members, tmp_path):
    archive = tar([(name, name.encode() * 600) for name in "abc"], tarfile.GNU_FORMAT)[: members * 1536]
    path = tmp_path / f"cut.tar{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](archive) if suffix else archive)
    with pytest.raises(ValueError, match=rf"cut\.tar.*at byte {members * 1536}, without an end-of-archive block"):
        Corpus.open([path])


TEXTS = st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=30), min_size=1, max_size=8).filter(
    any
)


@FEW
@given(texts=TEXTS, ascii_only=st.booleans(), newline=st.sampled_from([b"\n", b"\r\n", b"\n\n \n"]), mark=st.booleans())
def test_json_lines_round_trip(texts, ascii_only, newline, mark, tmp_path_factory):
    path = tmp_path_factory.mktemp("d") / "rows.jsonl"
    lines = []
    for i, text in enumerate(texts):
        row = json.dumps({"id": i, "the text": text}, ensure_ascii=ascii_only)
        try:
            lines.append(row.encode())
        except UnicodeEncodeError:  # a lone surrogate cannot be written as UTF-8, only escaped
            lines.append(json.dumps({"the text": text}).encode())
    path.write_bytes(b"\xef\xbb\xbf" * mark + newline.join(lines))
    assert contents(f"{path}#the text") == kept([text.encode("utf-8", "surrogatepass") for text in texts])
    assert contents(path) == [path.read_bytes()]


BROKEN = [
    b"{",
    b"not json",
    b"[1]",
    b"7",
    b'{"other": "x"}',
    b'{"text": 5}',
    b'{"text": null}',
    b'{"text": "\xff"}',
    b"[" * 100000,
]


@given(broken=st.lists(st.sampled_from(BROKEN), min_size=1, max_size=8), data=st.data())
@FEW
def test_broken_lines_are_counted_and_strict_refuses_them(broken, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    good = [json.dumps({"text": f"document {i}"}).encode() for i in range(3)]
    lines = data.draw(st.permutations([*good, *broken]))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    manifest = prepare([str(folder / "rows.jsonl.gz")], folder / "out", column="text")
    assert (manifest.documents, manifest.broken) == (3, len(broken))
    first = next(i for i, line in enumerate(lines, start=1) if line in broken)
    assert f"rows.jsonl.gz, line {first}: " in manifest.examples[0]
    with pytest.raises(ValueError, match=f"rows.jsonl.gz, line {first}: .*without --strict"):
        prepare([str(folder / "rows.jsonl.gz")], folder / "strict", column="text", strict=True)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n \n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_json_array_is_not_read_as_lines(indent, mark, suffix, tmp_path):
    content = mark + json.dumps([{"text": "a"}, {"text": "b"}], indent=indent).encode()
    path = tmp_path / f"rows.json{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError, match=r"rows\.json.*: is one JSON array.*JSON lines"):
        Corpus.open([f"{path}#text"])


@settings(FEW, max_examples=12)
@given(texts=TEXTS, kind=st.sampled_from(["string", "large_string", "binary", "dictionary"]))
def test_parquet_round_trips(texts, kind, tmp_path_factory):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow (extra `data`) is not installed")
    from pyarrow import parquet

    path = tmp_path_factory.mktemp("d") / "rows and more.parquet"
    values = [text.encode("utf-8", "surrogatepass") for text in texts]
    if kind != "binary":  # text columns can hold UTF-8 only
        values = [value.decode("utf-8", "replace").encode() for value in values]
    column = arrow.array([*values, None], arrow.binary())
    if kind == "dictionary":
        column = column.cast(arrow.string()).dictionary_encode()
    elif kind != "binary":
        column = column.cast(arrow.type_for_alias(kind))
    parquet.write_table(arrow.table({"n": range(len(column)), "text": column}), path, row_group_size=3)
    assert contents(f"{path}#text") == kept(values)
    manifest = prepare([f"{path}#text"], path.parent / "out")
    assert (manifest.broken, manifest.documents) == (1, len(kept(values)))
    with pytest.raises(ValueError, match="has no column 'words'; it has n, text"):
        Corpus.open([f"{path}#words"])


@pytest.mark.parametrize("form", ["saved", "saved with splits", "files"])
def test_local_datasets_are_read_by_split(form, tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets (extra `data`) is not installed")
    texts = ["one", "", "three\r\n\0", "\u00e9"]
    folder = tmp_path / "my data"
    with warnings.catch_warnings(action="ignore"):  # dill complains about pyarrow's types when datasets writes them
        table = datasets.Dataset.from_dict({"text": texts, "n": [1, 2, 3, 4]})
        if form == "saved":
            table.save_to_disk(folder)
        elif form == "saved with splits":
            datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(folder)
        else:
            folder.mkdir()
            table.to_parquet(folder / "train.parquet")
            table.select([0]).to_parquet(folder / "test.parquet")
    assert contents(f"hf://{folder}#text") == kept([text.encode() for text in texts])
    if form != "saved":
        prepare([f"hf://{folder}"], tmp_path / "test", column="text", split="test")
        assert contents(tmp_path / "test") == [b"one"]
        with pytest.raises(ValueError, match=r"^hf://.*my data: .*nowhere"):
            prepare([f"hf://{folder}#text"], tmp_path / "none", split="nowhere")
    with pytest.raises(ValueError, match="has no column 'words'; it has "):
        Corpus.open([f"hf://{folder}#words"])
    with pytest.raises(ValueError, match="name the column"):
        Corpus.open([f"hf://{folder}"])


def test_pipes_are_read_once(tmp_path):
    read, write = os.pipe()
    os.write(write, gzip.compress(tar([("a", b"one"), ("b", b"two")])))
    os.close(write)
    assert contents(f"/dev/fd/{read}") == [b"one", b"two"]
    os.close(read)


def test_names_that_exist_win_over_columns_and_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_source("a.jsonl#text:2.5") == Source("a.jsonl", "text", 5 / 2)
    assert parse_source("a:2") == Source("a", None, 2)
    assert parse_source("hf://owner/name@1.0#text") == Source("hf://owner/name@1.0", "text")
    assert parse_source("a:b") == Source("a:b")
    for name in ("a:2", "a.jsonl#text", "a.jsonl#text:2.5"):
        (tmp_path / name).touch()
        assert parse_source(name) == Source(name)
    with pytest.raises(ValueError, match="must be greater than zero"):
        parse_source("b:0")


@pytest.mark.parametrize("weight", ["1e3", ".5", "+2", "inf", "nan", "1_000", "-1e3"])
@pytest.mark.parametrize("source", ["books", "rows.jsonl#text", "hf://owner/name#text", "data/*.txt"])
def test_a_number_that_is_no_weight_says_what_a_weight_looks_like(source, weight):
    with pytest.raises(ValueError, match=r"a weight is written like 3 or 0\.5"):
        parse_source(f"{source}:{weight}")


def test_a_column_of_something_without_columns_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt: is neither JSON lines nor Parquet"):
        Corpus.open([f"{tmp_path}/notes.txt#text"])


def test_a_weighted_source_is_a_share_of_its_own(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 100)
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"b" * 50))
    corpus = Corpus.open([f"{tmp_path}/a:3", f"{tmp_path}/b.gz"])
    assert [(share.start, share.stop, share.weight) for share in corpus.shares] == [(0, 100, 3), (100, 150, 1)]
    assert corpus.offsets.tolist() == [0, 100, 150]
    assert corpus.read(98, 102).tobytes() == b"aabb"
    assert corpus.fingerprint != Corpus.open([f"{tmp_path}/a:2", f"{tmp_path}/b.gz"]).fingerprint
