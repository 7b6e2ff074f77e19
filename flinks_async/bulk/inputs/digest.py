"""The fingerprint of a token file, by which a job knows it again."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from .input_file import InputFile
from .reading import cannot_read

_CHUNK = 1024 * 1024


def digest(file: InputFile, progress: Callable[[int, int], object] | None = None) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hexadecimal) of the file as it is.

    Args:
        file: is read once from beginning to end.
        progress: called now and then with the bytes read and the bytes in all.

    Raises:
        InputError: it cannot be read.
        InputChangedError: it was changed meanwhile.
    """
    hashed, size = sha256(), 0
    with file.raw() as raw:
        while True:
            try:
                chunk = raw.read(_CHUNK)
            except OSError as error:
                raise cannot_read(error) from None
            if not chunk:
                break
            hashed.update(chunk)
            size += len(chunk)
            if progress is not None:
                progress(size, file.size)
    file.refuse_change()
    return size, hashed.hexdigest()
