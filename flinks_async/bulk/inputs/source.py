"""Opens a file of tokens, detects what it is, and reads its content: as a whole, or shard by shard.

Opening and reading raise InputError; a file that changed meanwhile, InputChangedError. Their messages never repeat a path,
because somebody may have typed a token in its place.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b, sha256
from io import BytesIO
from pathlib import Path
from types import NoneType
from typing import BinaryIO, Final

from attrs import evolve

from ... import checks
from ...checks import is_url
from ..compression import ByteSource, CompressedDataError, Compression, Corrupt, decompressed, detect
from ..errors import InputChangedError, InputError
from ..objects import Object, object_at
from ..records import Shard
from .detection import SAMPLE, refuse_magic
from .formats import Layout
from .rows import Lines, ParquetContent, RowParser, Token, check, parquet_columns

STDIN: Final = "-"
CHUNK: Final = 64 * 1024
MOST_READ_WHOLE: Final = 64 * 1024 * 1024
"""Bytes of the largest object that is read from its beginning, because it is compressed or not UTF-8."""

_DIGEST_CHUNK: Final = 1024 * 1024
_HEAD: Final = 4
_BOM: Final = b"\xef\xbb\xbf"
_PURPOSE: Final = b"flinks shard"


class InputFile:
    """A file of tokens: Parquet; or text, CSV or JSONL, plain or compressed with gzip or Zstandard.

    It is opened for each reading. The constructor reads until the columns are known. In object storage, a shard of a plain
    file is read as a range of bytes, and a shard of a Parquet file by its row groups.

    Args:
        path: of the file, or its URL (`s3://`, `gs://`, `az://`, `file://`).
        layout: how to read it.

    Attributes:
        name: its absolute path or its URL; `-` for tokens in memory.
        layout: as given, with what the file's name decides filled in.
        size: of the file in bytes, compressed.
        compression: of the file.
        seekable: whether it can be read from the offset of any line.
        remote: the object, if it is in object storage.
        columns: a parser that knows the columns.

    Raises:
        InputError: it cannot be read (missing, a folder, a pipe, cut short), is not a file of tokens, or does not agree
            with the layout. The message says what to do.
        ConfigError: the URL cannot be used.
    """

    remote: Object | None = None

    def __init__(self, path: str | os.PathLike[str], layout: Layout | None = None) -> None:
        checks.kind("path", os.fspath(path) if isinstance(path, os.PathLike) else path, str)
        checks.kind("layout", layout, Layout, NoneType)
        if os.fspath(path) == STDIN:
            raise InputError(
                "The tokens are read more than once, so they must be in a file; standard input ('-') is read only once."
            )
        self.path = Path(path)
        self.name = str(self.path.absolute())
        if is_url(path):
            found = object_at(os.fspath(path))
            if isinstance(found, Path):  # of a file URL
                self.path, self.name = found, str(found)
            else:
                self.remote, self.name = found, str(found)
        self._read_beginning((layout or Layout()).for_file(os.fspath(path)))

    def _read_beginning(self, layout: Layout) -> None:
        self.layout = layout
        self._parquet: Layout | None = None  # names all columns
        self.columns = self.parser()
        self._seen = self._look()
        self.size = int(self._seen[0])
        if self.layout.format == "parquet":
            with reading(), self.raw() as raw:
                column = parquet_columns(raw, self.layout.columns)["column"]
            self._parquet = evolve(self.layout, column=column)
            self.columns = self.parser()
        with self.content() as content:
            self.compression = content.compression
            if self._parquet is None:
                self.layout = layout.for_content(self.name, _sample(content))
                self.columns = self.parser()
        with self.content() as content:
            self._find_columns(content)
        self.seekable = self.compression == "none" and self._parquet is None and self.layout.encoding is None
        if self.remote is not None and not self.seekable and self._parquet is None and self.size > MOST_READ_WHOLE:
            raise InputError(
                f"The file of tokens has {self.size:,} bytes and is compressed or in another encoding than UTF-8, so each worker "
                f"would read all of it before its rows. Above {MOST_READ_WHOLE:,} bytes, store it plain, or as Parquet."
            )

    def parser(self) -> RowParser:
        """A parser for the file from its beginning."""
        return (self._parquet or self.layout).parser(os.fspath(self.path))

    def raw(self) -> BinaryIO:
        """The file, compressed. The caller closes it."""
        try:
            if self.remote is not None:
                return self.remote.open("rb")
            return open(self.path, "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise cannot_read(error) from None

    @contextmanager
    def content(self) -> Iterator[Content | ParquetContent]:
        """Its content from the beginning."""
        with self.raw() as file:
            yield self.content_of(file)

    def content_of(self, raw: BinaryIO) -> Content | ParquetContent:
        """The content of the file, which was opened by `raw`."""
        with reading():
            if self._parquet is None:
                return Content(raw, self.layout.encoding)
            return ParquetContent(raw, self._parquet.columns.values())

    def refuse_change(self) -> None:
        """Call this after each reading."""
        if self._look() != self._seen:
            raise InputChangedError(
                "The file of tokens was changed while it was read. Try again when nothing writes to it."
            )

    def _look(self) -> tuple[int | str, ...]:
        """Size and version of the file. They change whenever the file does."""
        try:
            if self.remote is not None:
                described = self.remote.find()
                return described.size, described.version
            found = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise cannot_read(error) from None
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise InputError(
                "The tokens are read more than once, so they must be in a file, not in a pipe or a device."
            )
        return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev

    def _find_columns(self, content: Content | ParquetContent) -> None:
        lines = Lines(content.read, content.position)
        with reading(lines):
            for _ in self.columns.rows(lines):
                if self.columns.ready:
                    break

    def __repr__(self) -> str:
        return f"InputFile({str(self.remote or self.path)!r}, {self.layout!r})"


class InputBytes(InputFile):
    """Tokens that are held in memory and never written to a disk, such as standard input after it was read to its end.

    A job with such an input can only be resumed with the same bytes.

    Args:
        data: what a file of tokens would hold, in any of its formats.
        layout: how to read it. `auto` means text.
    """

    def __init__(self, data: bytes, layout: Layout | None = None) -> None:
        checks.kind("data", data, bytes)
        checks.kind("layout", layout, Layout, NoneType)
        self._data = data
        self.path = Path(STDIN)
        self.name = STDIN
        self._read_beginning((layout or Layout()).for_file(STDIN))

    def raw(self) -> BinaryIO:
        return BytesIO(self._data)

    def _look(self) -> tuple[int | str, ...]:
        return (len(self._data),)

    def __repr__(self) -> str:
        return f"InputBytes(-, {self.layout!r})"


class Content:
    """The content of a token file: decompressed, and without a byte-order mark. The first bytes tell the compression.

    Args:
        raw: the file, at its beginning. It is not closed.
        encoding: of the text; None for UTF-8.

    Attributes:
        compression: of the file.
        position: bytes of the decompressed file before the next `read`.
    """

    def __init__(self, raw: BinaryIO, encoding: str | None = None) -> None:
        self._raw = raw
        compressed = _Peeked(raw)
        self.compression: Compression = detect(compressed.head)
        data = decompressed(compressed, self.compression)
        self._data = _Peeked(data if encoding is None else _Transcoded(data, encoding))
        begin = self._data.head
        refuse_magic(begin)
        if self.compression != "none" and detect(begin) != "none":
            raise InputError("The file of tokens is compressed twice; compress it once.")
        self._data.head = begin.removeprefix(_BOM)
        self.position = len(begin) - len(self._data.head)

    @property
    def raw_position(self) -> int:
        """Bytes of the file that were read, compressed."""
        return self._raw.tell()

    def read(self) -> bytes:
        """The next piece, up to `CHUNK` bytes; empty at the end."""
        data = self._data.read(CHUNK)
        self.position += len(data)
        return data


class _Transcoded:
    """Text in another encoding, as UTF-8."""

    def __init__(self, file: ByteSource, encoding: str) -> None:
        self._file = file
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()

    def read(self, size: int, /) -> bytes:
        """Raises:
        Corrupt: the text is not in this encoding.
        """
        data = b""
        try:
            while True:
                piece = self._file.read(size)
                data = self._decoder.decode(piece, final=not piece).encode()
                if data or not piece:
                    return data
        except UnicodeError:
            pass
        raise Corrupt(f"the text is not valid {self._encoding} (`encoding`)")


class _Peeked:
    """A file whose first bytes are known before it is read.

    Attributes:
        head: the bytes that `read` returns first: at least `_HEAD`, fewer only if there are no more.
    """

    def __init__(self, file: ByteSource) -> None:
        self._file = file
        self.head = b""
        while len(self.head) < _HEAD and (piece := file.read(CHUNK)):
            self.head += piece

    def read(self, size: int, /) -> bytes:
        data = self.head[:size] if self.head else self._file.read(size)
        self.head = self.head[size:]
        return data


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be opened or read."""
    if isinstance(error, CompressedDataError):
        return str(error)
    return error.strerror if isinstance(error, OSError) and error.strerror else "it is not a file"


def cannot_read(error: OSError | ValueError) -> InputError:
    """The error for a file that cannot be opened. Raise it `from None`."""
    return InputError(f"The file of tokens cannot be read: {reason_of(error)}.")


@contextmanager
def reading(lines: Lines | None = None) -> Iterator[None]:
    """Raises:
    InputError: the file, or the rest of the lines, cannot be read.
    """
    try:
        yield
        return
    except (OSError, CompressedDataError) as error:
        problem = cannot_read(error)
        if lines is not None:
            problem = InputError(f"Reading the tokens broke off after line {lines.count:,}: {reason_of(error)}.")
    raise problem


def _sample(content: Content | ParquetContent) -> bytes:
    """The beginning of the content. Where it breaks off is reported when the file is scanned."""
    sample = b""
    with suppress(OSError, CompressedDataError):
        while len(sample) < SAMPLE and (piece := content.read()):
            sample += piece
    return sample


def digest(file: InputFile, progress: Callable[[int, int], object] | None = None) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hexadecimal) of the file, by which a job recognizes it. For an object in object storage, it
    is the SHA-256 of its ETag and version.

    Args:
        file: is read once, from beginning to end; an object is not read.
        progress: called repeatedly with the bytes read and the total.

    Raises:
        InputError: it cannot be read.
        InputChangedError: it was changed while it was read.
    """
    checks.kind("file", file, InputFile)
    checks.function_or_none("progress", progress)
    if file.remote is not None:
        size, version = file._look()
        return int(size), sha256(str(version).encode()).hexdigest()
    hashed, size = sha256(), 0
    with file.raw() as raw:
        while True:
            with reading():
                chunk = raw.read(_DIGEST_CHUNK)
            if not chunk:
                break
            hashed.update(chunk)
            size += len(chunk)
            if progress is not None:
                progress(size, file.size)
    file.refuse_change()
    return size, hashed.hexdigest()


class ShardReader:
    """Reads shards in any order. Going back in a compressed file starts from its beginning.

    Args:
        file: holds the tokens.
        key: the same as for `scan`.
    """

    def __init__(self, file: InputFile, key: bytes) -> None:
        self._file = file
        self._key = key
        self._raw = file.raw()
        self._content: Content | ParquetContent | None = None
        self._lines: Lines

    def read(self, shard: Shard) -> list[Token]:
        """The sendable tokens of a shard, in order, including duplicates."""
        tokens = []
        failed = False
        try:
            for row in self._file.columns.rows(self._lines_from(shard), shard.first):
                if row.line > shard.last:
                    break
                checked = check(row)
                if isinstance(checked, Token):
                    tokens.append(checked)
                if row.line == shard.last:
                    break
            same = shard_digest(map(identity, tokens), self._key) == shard.digest
            reason = "they hold other tokens"
        except (OSError, CompressedDataError) as error:
            same, reason = False, reason_of(error)
            failed = self._file.remote is not None and isinstance(error, OSError) and error.errno == errno.EIO
        if failed:
            raise InputError(f"The file of tokens cannot be read: {reason}. Run the job again to resume.")
        if not same:
            raise InputChangedError(
                f"Lines {shard.first:,} to {shard.last:,} of the file of tokens cannot be read as they were when the job "
                f"was started: {reason}. Put the file back as it was, or start a new job."
            )
        return tokens

    def close(self) -> None:
        """Closes the file. May be called more than once."""
        self._raw.close()

    def _lines_from(self, shard: Shard) -> Lines:
        if self._file.seekable:
            self._raw.seek(shard.offset)
            return Lines(lambda: self._raw.read(CHUNK), shard.offset)
        content, row = self._content, shard.first - 1
        if (
            content is None
            or shard.offset < self._lines.position
            or (isinstance(content, ParquetContent) and row >= content.group_end)
        ):
            if content is not None and not isinstance(content, ParquetContent):
                self._raw.close()
                self._raw = self._file.raw()
                content = None
            self._content = content = content or self._file.content_of(self._raw)
            if isinstance(content, ParquetContent):  # a line is a row
                content.go_to(row)
                content.position = shard.offset
            self._lines = Lines(content.read, content.position)
        self._lines.starts.clear()
        self._lines.skip_to(shard.offset)
        return self._lines


def identity(token: Token) -> bytes:
    """The key for finding duplicates: instance and token, separated by a character that neither can contain."""
    return f"{token.instance or ''}\n{token.token.reveal()}".encode()


def shard_digest(identities: Iterable[bytes], key: bytes) -> str:
    """A keyed hash of tokens in order, as 32 hexadecimal digits. Tokens hold no line breaks, so these separate them."""
    return blake2b(b"\n".join(identities), key=key, digest_size=16, person=_PURPOSE).hexdigest()
