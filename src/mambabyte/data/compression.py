"""Streams inside streams: gzip, bzip2, xz, Zstandard and tar, read front to back in bounded memory.

A file counts as compressed or as an archive if its name and its first bytes both say so, so a misnamed file stays what
it is. A stream without a name (standard input) is judged by its first bytes. Archives are never unpacked to disk, hence
what their members are called can do no harm.
"""

import bz2
import gzip
import io
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Self, cast

CHUNK = 1 << 18
HEAD = 512  # a tar header, the longest mark of a format
_ZSTD_CHUNK = 1 << 13  # a hostile frame grows at most 32768-fold: 256 MiB at once
_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` needs, as large published dumps do


class ChunkStream(io.RawIOBase):
    """An iterator of bytes as a readable stream."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what is left of a chunk, or with the next one; 0 at the end."""
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def buffered(chunks: Iterator[bytes]) -> BinaryIO:
    """An iterator of bytes as a stream that can be asked for lines and for exact counts."""
    return cast(BinaryIO, io.BufferedReader(ChunkStream(chunks), CHUNK))


def chunks_of(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of a stream, a quarter of a mebibyte at a time."""
    return iter(lambda: stream.read(CHUNK), b"")


def peek(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first `HEAD` bytes of a stream, and a stream that still has them."""
    head = b""
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    return head, buffered(itertools.chain([head], chunks_of(stream)))


def decompressor(name: str | None, head: bytes) -> tuple[Callable[[BinaryIO], BinaryIO], str | None] | None:
    """What opens a stream that begins with `head`, and the name of what is inside; None if it is not compressed."""
    for suffix, inner_suffix, mark, opener in _FORMATS:
        if head.startswith(mark):
            if name is None:
                return opener, None
            if name.lower().endswith(suffix):
                return opener, name[: -len(suffix)] + inner_suffix
    return None


def is_tar(name: str | None, head: bytes) -> bool:
    """Whether a stream that begins with `head` is a tar archive: its first header has the right checksum."""
    if name is not None and not name.lower().endswith(".tar"):
        return False
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return name is not None and len(head) == HEAD and not any(head)  # an archive without members
    return True


def tar_members(stream: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of every regular file of an archive, in its order; each must be read before the next."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK, tarinfo=_CheckedTarInfo) as archive:
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # else a million files would grow a list of a million entries
            if member.isreg():
                content = archive.extractfile(member)
                assert content is not None, "a regular member has content"
                yield member.name, cast(BinaryIO, content)


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Turn what the decompressors raise on damaged data into a ValueError that names the data."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise ValueError(f"{name}: is damaged or cut short: {error}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's own trouble, not the format's
            raise
        raise ValueError(f"{name}: is damaged or cut short: {error}") from error


class _CheckedTarInfo(tarfile.TarInfo):
    """Raises where tarfile takes a damaged header, or the end of the file, for the end of the archive.

    An archive ends with blocks of zeros (POSIX ustar), so one that was cut between two members can be told.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except _END:
            raise
        except _NO_MORE as error:
            raise tarfile.ReadError(f"it ends at byte {archive.offset}, without an end-of-archive block") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


# typeshed leaves these two out
_END = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_NO_MORE = tarfile.EmptyHeaderError  # type: ignore[attr-defined]


def _open_gzip(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream))


def _open_bz2(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(stream))


def _open_xz(stream: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(stream))


def _open_zstd(stream: BinaryIO) -> BinaryIO:
    return buffered(_zstd_chunks(stream))


def _zstd_chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Frame after frame; zstandard's own reader would take a cut frame for the end."""
    try:
        import zstandard
    except ImportError as error:
        raise ValueError("reading .zst files needs the package zstandard: pip install 'mambabyte-lm[data]'") from error
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = None
    try:
        while compressed := stream.read(_ZSTD_CHUNK):
            while compressed:
                frame = frame or context.decompressobj()
                yield frame.decompress(compressed)
                compressed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if frame is not None:
        raise EOFError("the last Zstandard frame is not complete")


_FORMATS = [
    (suffix, inner, mark, opener)
    for mark, opener, suffixes in [
        (b"\x1f\x8b", _open_gzip, {".gz": "", ".tgz": ".tar"}),
        (b"BZh", _open_bz2, {".bz2": "", ".tbz2": ".tar", ".tbz": ".tar"}),
        (b"\xfd7zXZ\x00", _open_xz, {".xz": "", ".txz": ".tar"}),
        (b"\x28\xb5\x2f\xfd", _open_zstd, {".zst": "", ".zstd": "", ".tzst": ".tar"}),
        *(
            ((0x184D2A50 + i).to_bytes(4, "little"), _open_zstd, {".zst": "", ".zstd": "", ".tzst": ".tar"})
            for i in range(16)
        ),
    ]
    for suffix, inner in suffixes.items()
]
