"""Files of answers and of tokens by name, in a folder or in object storage (`s3://`, `gs://`, `az://`).

`Folder` has files on a disk; a name is durable when `put` returns. `Bucket` has objects below a URL, through obstore; each is
written by one PUT.

Methods raise OSError; its `strerror` says in words what failed. Texts of obstore are never shown, because they may hold parts
of a signed request. Credentials come from the environment of each process. They are in no attribute, repr or pickle.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast

from attrs import field, frozen

from ..checks import optional_import, parts_of_url
from ..errors import ConfigError
from .counters import waits
from .files import crash_points, create, make_folder, rename_durably, sync_folder

T = TypeVar("T")

READ_AT_ONCE: Final = 64 * 1024
"""Bytes of the first request after a seek. Each further one is twice as long, up to `_MOST_AT_ONCE`."""

_MOST_AT_ONCE: Final = 4 * 1024 * 1024
_RETRY: Final = {
    "max_retries": 1000,  # the time decides: ten quick refusals take two seconds
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=15), "base": 3},
}
_PATIENCE: Final = 180.0
_LONGEST_TRY: Final = 120.0
"""So a request fails after at most 300 seconds: the last try begins within 180 s and takes at most 120 s."""


@frozen
class Found:
    """A file or an object.

    Attributes:
        name: relative to the folder or URL.
        size: in bytes.
        modified: seconds since 1970, by the clock of the disk or of the object storage.
        version: changes with the content: ETag and version of an object; times and inode of a file.
    """

    name: str
    size: int
    modified: float
    version: str


@frozen
class Folder:
    """Files in a folder. They survive a power cut, and belong to their owner only. `str` names the place."""

    path: Path

    def prepare(self, folders: Iterable[str]) -> None:
        """Creates folders, where there are such things."""
        for folder in folders:
            make_folder(self.path / folder)

    def put(self, name: str, source: Path | bytes) -> None:
        """Adds or replaces a file as a whole. A finished file may be moved."""
        target = self.path / name
        if isinstance(source, Path):
            try:
                rename_durably(source, target)
                return
            except OSError as error:
                if error.errno != errno.EXDEV:  # a folder on another disk, such as a shared one
                    raise
        beside = target.with_name(f".{target.name}.tmp")
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as data:
            with open(create(beside), "wb") as copy:
                shutil.copyfileobj(data, copy)
                copy.flush()
                os.fsync(copy.fileno())
        rename_durably(beside, target)

    def at(self, name: str) -> Path:
        """A file, which need not exist."""
        return self.path / name

    def find(self, name: str) -> Found | None:
        """A file; None if it does not exist."""
        try:
            return _found(name, os.stat(self.path / name))
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> Iterator[Found]:
        """Everything directly in a folder; "" is the place itself."""
        with suppress(FileNotFoundError), os.scandir(self.path / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    if entry.is_file():
                        yield _found(f"{folder}/{entry.name}".lstrip("/"), entry.stat())

    def delete(self, names: Iterable[str]) -> None:
        """Removes files. It is no error if one is missing."""
        paths = [self.path / name for name in names]
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in paths}:
            sync_folder(folder)

    def __str__(self) -> str:
        return str(self.path)


def _found(name: str, stat: os.stat_result) -> Found:
    version = f"{stat.st_mtime_ns}-{stat.st_ino}-{stat.st_dev}"
    return Found(name, stat.st_size, stat.st_mtime, version)


@frozen
class Bucket:
    """Objects below a URL, with the methods of `Folder`.

    Args:
        url: with the scheme `s3`, `gs` or `az`, the bucket or container, and a prefix of names.
        store: for tests: a store of obstore.
        patience: as for `place_at`.
    """

    url: str
    _store: Any = field(repr=False)
    _patience: float = _PATIENCE

    def prepare(self, folders: Iterable[str]) -> None:
        pass

    def put(self, name: str, source: Path | bytes) -> None:
        # One PUT is all or nothing. An interrupted multipart upload would leave parts that obstore cannot remove.
        self._ask(_obstore().put, self._store, name, source, use_multipart=False)
        crash_points.reach("part written")

    def at(self, name: str) -> Object:
        return Object(self, name)

    def find(self, name: str) -> Found | None:
        with suppress(OSError):
            return _described(self._ask(_obstore().head, self._store, name))
        try:  # the answer to HEAD has no body, so it does not say why it failed
            return _described(self._ask(_obstore().get, self._store, name, options={"range": (0, 1)}).meta)
        except FileNotFoundError:
            return None

    def list(self, folder: str) -> Iterator[Found]:
        # By pages: with a delimiter, obstore returns everything at once. Folders inside are skipped.
        inside, starts = f"{folder}/" if folder else "", list[str | None]([None])
        for after in starts:
            pages = self._ask(_obstore().list, self._store, folder or None, offset=after, chunk_size=1000)
            for meta in chain.from_iterable(iter(partial(self._ask, next, pages, ()), ())):
                name, slash, _ = meta["path"].removeprefix(inside).partition("/")
                if slash:
                    starts.append(f"{inside}{name}0")  # the character after a slash
                    break
                yield _described(meta)

    def delete(self, names: Iterable[str]) -> None:
        names = [*names]
        try:
            self._ask(_obstore().delete, self._store, names)  # S3 and Azure: many in one request
        except FileNotFoundError:
            for name in names:
                with suppress(FileNotFoundError):
                    self._ask(_obstore().delete, self._store, name)

    def get(self, found: Found, start: int, size: int) -> bytes:
        """A range of an object.

        Raises:
            OSError: also if the object has another version by now.
        """
        answer = self._ask(_obstore().get, self._store, found.name, options={"range": (start, start + size)})
        if _described(answer.meta).version != found.version:  # not by a condition, which some storages ignore
            raise OSError(errno.ESTALE, "the object was changed")
        return bytes(self._ask(answer.bytes))

    def _ask(self, function: Callable[..., T], *args: object, **options: object) -> T:
        with waits.call(self.url, self._patience + min(self._patience, _LONGEST_TRY)):
            return _ask(function, *args, **options)

    def __str__(self) -> str:
        return self.url


@frozen
class Object:
    """One object. `str` is its URL."""

    bucket: Bucket
    name: str

    def open(self, mode: Any = "rb", /) -> BinaryIO:
        return cast("BinaryIO", _Ranges(self.bucket, self.find()))

    def find(self) -> Found:
        """Its description. Raises FileNotFoundError."""
        found = self.bucket.find(self.name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object")
        return found

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.name}"


Readable = Path | Object
"""A file or an object to be read. `str` names it."""

Objects = Folder | Bucket
"""Files in one folder, or objects below one URL."""


class _Ranges(io.RawIOBase):
    """Reads an object by ranges, ahead while it is read from front to back. A version that changes is refused."""

    def __init__(self, bucket: Bucket, found: Found) -> None:
        self._bucket = bucket
        self._found = found
        self._at = 0
        self._start, self._data = 0, b""
        self._ahead = READ_AT_ONCE

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = max(0, offset + (0, self._at, self._found.size)[whence])
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._found.size - self._at
        size = left if size is None or size < 0 else min(size, left)
        if size <= 0:
            return b""
        offset = self._at - self._start
        if not 0 <= offset < len(self._data):
            self._fetch(size)
            offset = 0
        elif offset + size > len(self._data):
            rest = self._data[offset:]
            self._at += len(rest)
            return rest + self.read(size - len(rest))
        self._at += size
        return self._data[offset : offset + size]

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _fetch(self, size: int) -> None:
        forward = self._data and self._at == self._start + len(self._data)
        self._ahead = min(2 * self._ahead, _MOST_AT_ONCE) if forward else READ_AT_ONCE
        size = min(max(size, self._ahead), self._found.size - self._at)
        self._start, self._data = self._at, self._bucket.get(self._found, self._at, size)
        if len(self._data) != size:
            raise OSError(errno.EIO, "the object storage returned fewer bytes than the object has")


def _described(meta: Any) -> Found:
    etag = (meta["e_tag"] or "").removeprefix("W/")  # some storages and proxies send a weak one for HEAD only
    version = " ".join(part for part in (etag, meta["version"]) if part) or str(meta["last_modified"])
    return Found(meta["path"], meta["size"], meta["last_modified"].timestamp(), version)


def place_at(url: str | None, folder: Path, *, patience: float = _PATIENCE) -> Objects:
    """The place of a URL, or a folder without one. Raises ConfigError as `checked_url` does.

    Args:
        patience: seconds for which a request is repeated.
    """
    if url is None:
        return Folder(folder)
    scheme, bucket, prefix = parts_of_url(url)
    if scheme == "file":
        return Folder(Path(prefix))
    return Bucket(url, _connected(scheme, bucket, prefix, patience), patience)


def object_at(url: str) -> Object | Path:
    """The object or file of a URL. Raises ConfigError as `checked_url` does."""
    scheme, bucket, name = parts_of_url(url)
    if scheme == "file":
        return Path(name)
    if not name:
        raise ConfigError("this URL names a bucket, but no object in it")
    folder, _, last = url.rstrip("/").rpartition("/")
    return Object(Bucket(folder, _connected(scheme, bucket, name.rpartition("/")[0])), last)


def _connected(scheme: str, bucket: str, prefix: str, patience: float = _PATIENCE) -> Any:
    """A store of obstore, with the credentials of the environment."""
    stores = optional_import("obstore.store", extra="cloud")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        if scheme == "s3" and not re.match(r"https?://[^/\s]|$", os.environ.get(name, "")):  # obstore would panic
            raise ConfigError(f"{name} must be a URL, such as https://storage.example")
    http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    retry = {**_RETRY, "retry_timeout": timedelta(seconds=patience)}
    client = {"connect_timeout": "5s", "timeout": f"{min(patience, _LONGEST_TRY):g}s", "allow_http": http}
    options: dict[str, Any] = {"client_options": client, "retry_config": retry}
    if scheme == "s3" and (provider := _profile()) is not None:
        options["credential_provider"] = provider
    make = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[scheme]
    try:
        return _ask(make, bucket, prefix=prefix or None, **options)
    except OSError as error:
        problem = error.strerror
    account = " Is AZURE_STORAGE_ACCOUNT_NAME set?" if scheme == "az" else ""
    raise ConfigError(f"object storage ({scheme}://) cannot be used: {problem}.{account}")


def _profile() -> Any:
    """The credentials of a profile in ~/.aws, which obstore does not read itself; None if the environment has others."""
    home = Path.home() / ".aws"
    named = os.environ.get("AWS_PROFILE")
    files = any((home / name).exists() for name in ("credentials", "config"))
    if os.environ.get("AWS_ACCESS_KEY_ID") or not (named or files):
        return None
    try:
        session = import_module("boto3").Session()
        return import_module("obstore.auth.boto3").Boto3CredentialProvider(session)
    except ImportError:
        problem = "profiles in ~/.aws need boto3: pip install boto3"
    except Exception as error:  # of boto3: no such profile, no credentials in it
        if not named:
            return None
        problem = f"the profile of AWS_PROFILE cannot be used ({type(error).__name__})"
    raise ConfigError(problem)


def _obstore() -> Any:
    return optional_import("obstore", extra="cloud")


# --- errors of object storage -----------------------------------------------------------------------------------------

_CODE: Final = re.compile(r"<Code>([A-Za-z]{3,40})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3}) ")
_DENIED: Final = "permission is denied. The credentials must allow to get, put, list and delete here"
_HINTS: Final = {  # by a part of the text, or by the class of the error
    "NoSuchBucket": "the bucket does not exist. Create it, or correct the URL",
    "ContainerNotFound": "the container does not exist. Create it, or correct the URL",
    "InvalidBucketName": "no bucket can have this name",
    "InvalidAccessKeyId": "the access key is unknown",
    "SignatureDoesNotMatch": "the secret access key is wrong",
    "AuthenticationFailed": "the account key or token is wrong, or the clock of this machine is",
    "AuthorizationPermissionMismatch": _DENIED,
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "ExpiredToken": "the credentials have expired",
    "InvalidToken": "the credentials are refused",
    "AuthorizationHeaderMalformed": "the bucket is in another region, which AWS_REGION must name",
    "QuotaExceeded": "the quota of the storage is used up",
    "SlowDown": "the storage asks for fewer requests",
    "EntityTooLarge": "a part is too large for one PUT. Start a job with fewer tokens in a shard",
    "AccessDenied": _DENIED,
    "BadScheme": "its endpoint is not https, and AWS_ALLOW_HTTP is not true",
    "NotPartial": "it ignores ranges, so its objects cannot be read in parts",
    "MissingEtag": "its answers have no ETag, which a proxy may have removed",
    "kind: Connect": "there is no connection to it. Check its endpoint and the network",
    "kind: Timeout": "it did not answer in time",
    "configured region": "the bucket is in another region, which AWS_REGION must name",
    "instance metadata": "there are no credentials (environment, profile or role)",
    "169.254.169.254": "there are no credentials (environment, profile or role)",
    "PermissionDeniedError": _DENIED,
    "UnauthenticatedError": "the credentials are refused",
    "InvalidPathError": "no object can have this name",
}


def _ask(function: Callable[..., T], *args: object, **options: object) -> T:
    """Calls obstore. Raises OSError without the texts of obstore."""
    try:
        return function(*args, **options)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of Rust
            raise
        problem = _problem(error)
    raise problem


def _problem(error: BaseException) -> OSError:
    text, name = str(error), type(error).__name__
    hint = next((words for sign, words in _HINTS.items() if sign in text or sign == name), None)
    if isinstance(error, FileNotFoundError) and hint is None:
        return FileNotFoundError(errno.ENOENT, "there is no such object")
    found = [*(f"status {status}" for status in _STATUS.findall(text)[:1]), *_CODE.findall(text)[:1]] or [name] * (
        not hint
    )
    cause, dot, advice = (hint or "the object storage failed").partition(". ")
    details = f" ({', '.join(found)})" if found else ""
    return OSError(errno.EIO, f"{cause}{details}{dot}{advice}")
