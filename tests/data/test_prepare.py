import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mambabyte.data import Corpus, describe, is_set, prepared
from mambabyte.data.prepare import prepare
from mambabyte.data.prepared import open_set
from mambabyte.data.shards import BLOCK, Digests, Manifest, ShardEntry, publish_json, read_manifest, read_progress
from tests.data.conftest import write_documents

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
DOCUMENTS = st.lists(st.binary(max_size=50), min_size=1, max_size=15).filter(any)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@FEW
@given(documents=DOCUMENTS, shard_bytes=st.integers(1, 300), data=st.data())
def test_a_set_holds_its_documents_in_shards_of_whole_ones(documents, shard_bytes, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    raw = Corpus.open([write_documents(folder / "raw", documents)])
    manifest = prepare([str(folder / "raw")], folder / "set", shard_bytes=shard_bytes)
    corpus = Corpus.open([folder / "set"])
    joined = raw.read(0, raw.nbytes).tobytes()
    assert (corpus.nbytes, corpus.documents, corpus.empty) == (raw.nbytes, raw.documents, raw.empty)
    assert corpus.offsets.tolist() == raw.offsets.tolist()
    assert list(corpus.names) == list(raw.names)
    assert [corpus.document(i).tobytes() for i in range(corpus.documents)] == [d for d in documents if d]
    start = data.draw(st.integers(0, len(joined)))
    stop = data.draw(st.integers(start, len(joined)))
    assert corpus.read(start, stop).tobytes() == joined[start:stop]
    assert all(shard.bytes < shard_bytes + max(map(len, documents)) for shard in manifest.shards)
    assert describe(folder / "set")["shards"] == len(manifest.shards)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7, 3_000_000])
def test_blocks_of_every_length_are_checked_and_read(tmp_path, monkeypatch, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    prepare([str(tmp_path / "file")], tmp_path / "set")
    monkeypatch.setattr(prepared, "VERIFIED_WHOLE", 0)
    corpus = Corpus.open([tmp_path / "set"])
    for start, stop in [(0, size), (size // 2, size), (size - 1, size), (min(size, BLOCK), size), (0, size // 3)]:
        assert corpus.read(start, stop).tobytes() == content[start:stop]
    assert corpus.document(0).tobytes() == content


@pytest.mark.parametrize("suffix", ["bin", "idx", "crc", "names"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
@pytest.mark.parametrize("whole", [True, False], ids=["checked when opened", "checked when read"])
def test_damage_to_any_file_is_named(tmp_path, monkeypatch, suffix, damage, whole):
    write_documents(tmp_path / "raw", [os.urandom(3 * BLOCK) for _ in range(3)])
    prepare([str(tmp_path / "raw")], tmp_path / "set", shard_bytes=BLOCK)
    path = tmp_path / f"set/shard-00001.{suffix}"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": content, "cut": content[:-1], "grow": content + b"x"}[damage])
    if not whole:
        monkeypatch.setattr(prepared, "VERIFIED_WHOLE", 0)

    def use_everything() -> None:
        corpus = Corpus.open([tmp_path / "set"])
        assert len(list(corpus.names)) == corpus.documents
        corpus.read(0, corpus.nbytes)

    with pytest.raises(ValueError, match=f"shard-00001.{suffix}: "):
        use_everything()


@pytest.mark.parametrize("suffix", ["bin", "idx", "crc", "names"])
def test_a_set_that_lost_its_first_shard_is_still_a_set(tmp_path, suffix):
    (tmp_path / "file").write_bytes(b"content")
    prepare([str(tmp_path / "file")], tmp_path / "sets/a")
    (tmp_path / f"sets/a/shard-00000.{suffix}").unlink()
    assert is_set(tmp_path / "sets/a")
    for use in (lambda: Corpus.open([tmp_path / "sets/a"]), lambda: describe(tmp_path / "sets/a")):
        with pytest.raises(ValueError, match=rf"shard-00000\.{suffix}: is missing from its prepared set"):
            use()
    with pytest.raises(ValueError, match=r"sets/a: is a prepared set; name it on its own"):
        Corpus.open([tmp_path / "sets"])
    (tmp_path / "sets/a" / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(ValueError, match=r"manifest\.json: is not of a prepared set"):
        Corpus.open([tmp_path / "sets/a"])


@pytest.mark.parametrize("left", ["bin", "idx", "crc", "names"])
def test_shards_without_a_manifest_are_no_plain_files(tmp_path, left):
    (tmp_path / "file").write_bytes(b"content")
    prepare([str(tmp_path / "file")], tmp_path / "sets/a")
    for path in (tmp_path / "sets/a").iterdir():
        if path.suffix != f".{left}":
            path.unlink()
    for folder in ("sets/a", "sets"):
        with pytest.raises(ValueError, match=r"sets/a: holds shards of a prepared set but no manifest\.json"):
            Corpus.open([tmp_path / folder])


def test_a_manifest_of_something_else_is_a_plain_file(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "shard-list.bin").write_bytes(b"also")
    assert not is_set(tmp_path)
    assert Corpus.open([tmp_path]).documents == 2


def test_with_block_checks_only_the_bytes_that_are_used_are_checked(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(4 * BLOCK))
    prepare([str(tmp_path / "file")], tmp_path / "set")
    with (tmp_path / "set/shard-00000.bin").open("r+b") as file:
        file.seek(2 * BLOCK + 5)
        file.write(b"!")
    monkeypatch.setattr(prepared, "VERIFIED_WHOLE", 0)
    corpus = Corpus.open([tmp_path / "set"])
    assert not corpus.read(0, 2 * BLOCK).any()
    with pytest.raises(ValueError, match=rf"shard-00000.bin: is not what was prepared \(near byte {2 * BLOCK}\)"):
        corpus.read(3 * BLOCK - 1, 3 * BLOCK)
    with pytest.raises(ValueError, match=r"shard-00000.bin: "):
        corpus.document(0)


@pytest.mark.parametrize("change", ["cut", "format", "count", "kind"])
def test_a_damaged_manifest_is_named(tmp_path, change):
    (tmp_path / "file").write_bytes(b"content")
    prepare([str(tmp_path / "file")], tmp_path / "set")
    path = tmp_path / "set/manifest.json"
    record = json.loads(path.read_text())
    changes = {"format": {"format": "other"}, "count": {"documents": 2}, "kind": {"shards": "none"}}
    text = json.dumps(record | changes.get(change, {}))
    path.write_text(text[:-9] if change == "cut" else text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Corpus.open([tmp_path / "set"])


def test_shards_beyond_4_gb_are_read_at_any_offset(tmp_path):
    size = 2**32 + 3 * BLOCK
    zeros, word = zlib.crc32(bytes(BLOCK)), b"far away"
    with (tmp_path / "shard-00000.bin").open("wb") as file:
        file.truncate(size)
        file.seek(2**32 + BLOCK - 4)
        file.write(word)
        blocks = [bytes(BLOCK - 4) + word[:4], word[4:] + bytes(BLOCK - 4)]
    checksums = np.full(size // BLOCK, zeros, "<u4")
    first = 2**32 // BLOCK
    checksums[first : first + 2] = [zlib.crc32(block) for block in blocks]
    files = {
        "idx": np.array([0, 2**32 + BLOCK - 4, size], "<i8").tobytes(),
        "crc": checksums.tobytes(),
        "names": b"zeros\nwords\n",
    }
    for suffix, content in files.items():
        (tmp_path / f"shard-00000.{suffix}").write_bytes(content)
    sha256 = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()}
    entry = ShardEntry(bytes=size, documents=2, name_bytes=12, sha256=Digests(bin="not read whole", **sha256))
    (tmp_path / "file").write_bytes(b"x")
    source = prepare([str(tmp_path / "file")], tmp_path / "other").source
    manifest = Manifest(bytes=size, documents=2, empty=0, broken=0, examples=(), source=source, shards=(entry,))
    publish_json(tmp_path / "manifest.json", manifest)
    corpus = Corpus.open([tmp_path])
    start = 2**32 + BLOCK - 4
    assert corpus.read(start - 1, start + 9).tobytes() == b"\0" + word + b"\0"
    assert corpus.document(1)[:8].tobytes() == word
    assert corpus.document_starts(start - 5, size).tolist() == [start]


@FEW
@given(documents=DOCUMENTS, stops=st.lists(st.integers(1, 15), max_size=4), shard_bytes=st.integers(1, 100))
def test_stopping_anywhere_and_resuming_gives_the_same_files(documents, stops, shard_bytes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    rows = [json.dumps({"text": document.decode("latin-1")}) for document in documents]
    for part in range(3):
        (folder / f"{part}.jsonl").write_text("\nbroken\n".join(rows[part::3]) + "\nbroken")
    sources = [f"{folder}/*.jsonl#text"]
    prepare(sources, folder / "whole", shard_bytes=shard_bytes)
    for stop in stops:
        calls = iter(range(stop))

        def interrupt(nbytes: int, count: int, calls: iter = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        try:
            prepare(sources, folder / "parts", shard_bytes=shard_bytes, report=interrupt)
        except KeyboardInterrupt:
            with pytest.raises(ValueError, match="is a prepared set that is not finished"):
                Corpus.open([folder / "parts"])
    prepare(sources, folder / "parts", shard_bytes=shard_bytes)
    assert digests(folder / "parts") == digests(folder / "whole")


def test_strict_refuses_what_was_left_out_before(tmp_path):
    (tmp_path / "rows.jsonl").write_text("broken\n" + '{"text": "a row"}\n' * 3)
    (tmp_path / "more.jsonl").write_text('{"text": "more"}\n')
    sources = [f"{tmp_path}/rows.jsonl#text", f"{tmp_path}/more.jsonl#text"]

    def interrupt(nbytes: int, count: int) -> None:
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(sources, tmp_path / "set", shard_bytes=15, report=interrupt)
    progress = read_progress(tmp_path / "set")
    assert (progress.next_input, progress.broken) == (0, 1)
    publish_json(tmp_path / "set/preparing.json", replace(progress, next_input=1, next_document=0))
    refused = pytest.raises(ValueError, match=r"rows\.jsonl, line 1: is not JSON.*without --strict")
    with refused:
        prepare(sources, tmp_path / "set", shard_bytes=15, strict=True)
    assert prepare(sources, tmp_path / "set", shard_bytes=15).broken == 1
    before = digests(tmp_path / "set")
    with refused:
        prepare(sources, tmp_path / "set", shard_bytes=15, strict=True)
    assert digests(tmp_path / "set") == before


def test_killed_at_any_moment_it_goes_on_and_never_looks_whole_before_it_is(tmp_path):
    write_documents(tmp_path / "raw", [os.urandom(200_000) for _ in range(100)])
    prepare([str(tmp_path / "raw")], tmp_path / "whole", shard_bytes=500_000)
    code = (
        "import sys; from pathlib import Path; from mambabyte.data.prepare import prepare; print('ready', flush=True)\n"
        "prepare([sys.argv[1]], Path(sys.argv[2]), shard_bytes=500_000)"
    )
    kills = 0
    for delay in (0.005, 0.05, 0.1):
        command = [sys.executable, "-c", code, tmp_path / "raw", tmp_path / "parts"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        if (tmp_path / "parts/manifest.json").exists():
            assert digests(tmp_path / "parts").keys() >= digests(tmp_path / "whole").keys()
            open_set(tmp_path / "parts", Corpus.open([tmp_path / "raw"])._parts[0]._reader, "parts")
    prepare([str(tmp_path / "raw")], tmp_path / "parts", shard_bytes=500_000)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    assert kills


@pytest.mark.parametrize("name", ["manifest.json", "preparing.json", "shard-00000.bin"])
def test_overwrite_replaces_a_damaged_set_too(tmp_path, name):
    (tmp_path / "a").write_bytes(b"a" * 100)
    prepare([str(tmp_path / "a")], tmp_path / "set")
    before = digests(tmp_path / "set")
    if name == "preparing.json":
        (tmp_path / "set/manifest.json").unlink()
    (tmp_path / "set" / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=name):
        prepare([str(tmp_path / "a")], tmp_path / "set")
    prepare([str(tmp_path / "a")], tmp_path / "set", overwrite=True)
    assert digests(tmp_path / "set") == before


def test_a_finished_set_is_left_alone_and_another_needs_overwrite(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    prepare([str(tmp_path / "a")], tmp_path / "set")
    before = (tmp_path / "set/shard-00000.bin").stat().st_mtime_ns
    prepare([str(tmp_path / "a")], tmp_path / "set")
    assert (tmp_path / "set/shard-00000.bin").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="was prepared from something else"):
        prepare([str(tmp_path / "b")], tmp_path / "set")
    prepare([str(tmp_path / "b")], tmp_path / "set", overwrite=True)
    assert Corpus.open([tmp_path / "set"]).read(0, 1).tobytes() == b"b"
    (tmp_path / "b").write_bytes(b"changed")
    with pytest.raises(ValueError, match="was prepared from something else"):
        prepare([str(tmp_path / "b")], tmp_path / "set")


def test_folders_that_must_not_be_written_to_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"a")
    with pytest.raises(ValueError, match="lies inside the source"):
        prepare([str(tmp_path)], tmp_path / "set")
    with pytest.raises(ValueError, match="lies inside the source"):
        prepare([f"{tmp_path}/*"], tmp_path / "set")
    prepare([f"{tmp_path}/*/a"], tmp_path / "beside")
    with pytest.raises(ValueError, match="is not empty and no prepared set"):
        prepare([str(tmp_path / "in/a")], tmp_path / "in")
    assert (tmp_path / "in/a").read_bytes() == b"a"
    prepare([str(tmp_path / "in/a")], tmp_path / "sets/a")
    with pytest.raises(ValueError, match="sets/a: is a prepared set; name it on its own"):
        Corpus.open([tmp_path / "sets"])
    with pytest.raises(ValueError, match="weights belong to training"):
        prepare([f"{tmp_path}/in/a:2"], tmp_path / "set")
    (tmp_path / "in/empty").touch()
    with pytest.raises(ValueError, match="nothing but 1 empty document and 0 broken records"):
        prepare([str(tmp_path / "in/empty")], tmp_path / "nothing")


def test_two_at_once_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"a")

    def second(nbytes: int, count: int) -> None:
        with pytest.raises(ValueError, match="another run is preparing"):
            prepare([str(tmp_path / "a")], tmp_path / "set")

    prepare([str(tmp_path / "a")], tmp_path / "set", report=second)
    assert read_manifest(tmp_path / "set").bytes == 1


def test_memory_stays_bounded_whatever_a_document_holds(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100_000_000)
    code = (
        "import resource, sys; from pathlib import Path; from mambabyte.data.prepare import prepare\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "prepare([sys.argv[1]], Path(sys.argv[2]))\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert after - before < 30_000, f'{after - before} KiB more'"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "sparse", tmp_path / "set"], check=True, timeout=120)
