"""The bytes of a token file as they were before it was compressed, without byte-order mark."""

from __future__ import annotations

from typing import Final

from ..compression import Compression, Decompressed, Source, detect
from ..errors import InputError

CHUNK: Final = 64 * 1024

_HEAD: Final = 4
_BOM: Final = b"\xef\xbb\xbf"
_FOREIGN: Final = {
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"PAR1": "is a Parquet file, which a job can read (--job), under a name that ends in .parquet or with --format parquet",
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet; export it as CSV",
}


class Content:
    """Reads a token file, compressed or not: that is found out from its first bytes, not from its name.

    Args:
        raw: the file as it is, from its beginning. It is not closed.

    Attributes:
        compression: of the file.
        position: bytes before what `read` gives next, as if it were not compressed.

    Raises:
        InputError: it is in a format that cannot be read.
        CompressedDataError: it cannot be decompressed.
        ConfigError: it is compressed with Zstandard, and the library is not installed.
        OSError: from the file.
    """

    def __init__(self, raw: Source) -> None:
        self._raw = _Rewound(raw)
        head = self._raw.peek(_HEAD)
        _refuse_foreign(head)
        self.compression: Compression = detect(head)
        self._data = Decompressed(self._raw, self.compression)
        begin = b""
        while len(begin) < _HEAD and (piece := self._data.read(CHUNK)):
            begin += piece
        if self.compression != "none":
            _refuse_foreign(begin)
            if detect(begin) != "none":
                raise InputError("The file of tokens is compressed twice; compress it once.")
        self._begin = begin.removeprefix(_BOM)
        self.position = len(begin) - len(self._begin)

    @property
    def raw_position(self) -> int:
        """Bytes of the file itself that were read."""
        return self._raw.position

    def read(self) -> bytes:
        """The next piece, some `CHUNK` bytes; nothing at the end.

        Raises:
            CompressedDataError: it cannot be decompressed any further.
            OSError: from the file.
        """
        data, self._begin = self._begin or self._data.read(CHUNK), b""
        self.position += len(data)
        return data


def _refuse_foreign(head: bytes) -> None:
    for magic, problem in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"The file of tokens {problem}.")


class _Rewound:
    """A file that may be looked at before it is read. It counts what was read."""

    def __init__(self, file: Source) -> None:
        self._file = file
        self._head = b""
        self.position = 0

    def peek(self, size: int) -> bytes:
        """The first bytes, fewer only if there are no more."""
        while len(self._head) < size and (piece := self._file.read(CHUNK)):
            self._head += piece
        return self._head[:size]

    def read(self, size: int, /) -> bytes:
        data = self._head[:size] if self._head else self._file.read(size) or b""
        self._head = self._head[size:]
        self.position += len(data)
        return data
