"""What a job is: written once, when it begins, and compared whenever it goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from attrs import asdict, evolve, field, frozen

from .errors import InputError, JobMismatchError, LedgerError
from .files import write_durably
from .inputs import Layout

VERSION: Final = 1


@frozen
class Manifest:
    """A job's identity. It holds no token and no secret.

    Attributes:
        job: 32 hexadecimal digits.
        created: UTC, ISO 8601.
        path: of the input, absolute.
        size: of the input in bytes.
        sha256: of the input's bytes.
        layout: how the input is read.
        origin: where the answers come from, by the name of the instance ("" for rows that name none): the host.
        store: what the store says of itself. The file keeps a path in the job's directory relative to it, so that the
            directory may be moved.
        shard_size: tokens in a shard.
        version: of this file's format.
    """

    job: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    created: str
    path: str
    size: int
    sha256: str
    layout: dict[str, Any]
    origin: dict[str, str]
    store: dict[str, Any]
    shard_size: int
    version: int = field(default=VERSION)

    def to_json(self) -> bytes:
        """Raises:
        InputError: a path in it is not UTF-8, so it could not be found again.
        """
        try:
            return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2) + b"\n"
        except UnicodeEncodeError:
            pass
        raise InputError(
            "The name of the file of tokens, of the output, or of a folder of theirs is not UTF-8. Rename it."
        )

    def save(self, path: Path) -> None:
        """Raises:
        StoreError: it cannot be written.
        """
        write_durably(path, evolve(self, store=_kept(self.store, path.parent)).to_json())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Raises:
        JobMismatchError: there is none.
        LedgerError: it is broken, or of a newer version.
        """
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            data = None
        except OSError as error:
            raise LedgerError(f"{path} cannot be read: {error.strerror}") from None
        if data is None:
            raise JobMismatchError(f"{path.parent} is not the directory of a job: it has no {path.name}")
        try:
            values = msgspec.json.decode(data)
            version = values["version"]
            if version > VERSION:
                raise LedgerError(
                    f"{path} was written by a newer version of flinks-async (format {version}); update it"
                )
            manifest = msgspec.convert(values, cls)
            msgspec.convert(manifest.layout, Layout)
            return evolve(manifest, store=_found(manifest.store, path.parent))
        except (msgspec.DecodeError, TypeError, KeyError):
            pass
        raise LedgerError(f"{path} is broken")

    def same_store(self, described: Mapping[str, Any], directory: Path) -> bool:
        """Whether a store is that of the job, by whatever name the job's directory is called."""
        return _kept(self.store, directory) == _kept(described, directory)

    def refuse_other(self, other: Manifest, directory: Path) -> None:
        """Compares with what is asked for now.

        Raises:
            JobMismatchError: they differ. The message says in what.
        """
        if self.same_store(other.store, directory):
            other = evolve(other, store=self.store)
        found = list(_differences(self, other))
        if found:
            raise JobMismatchError(
                f"{directory} belongs to another job: {'; '.join(found)}. "
                "Take another directory, or ask for the same as before"
            )


def _kept(store: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A store's description with a path that is relative if it is in the job's directory."""
    path = store.get("path")
    if isinstance(path, str):
        try:  # not of the file itself, which may be a link
            inside = Path(os.path.realpath(Path(path).parent)).relative_to(os.path.realpath(directory))
        except ValueError:
            return dict(store)
        return {**store, "path": (inside / Path(path).name).as_posix()}
    return dict(store)


def _found(store: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A store's description with an absolute path."""
    path = store.get("path")
    return {**store, "path": str(directory.absolute() / path)} if isinstance(path, str) else dict(store)


def _differences(was: Manifest, now: Manifest) -> list[str]:
    found = []
    if (was.size, was.sha256) != (now.size, now.sha256):
        found.append(f"the file of tokens has another content (it had {was.size:,} bytes and has {now.size:,})")
    for name in ("layout", "origin", "store"):
        before, after = getattr(was, name), getattr(now, name)
        keys = sorted({*before, *after})
        if name == "store" and before.get("kind") != after.get("kind"):
            keys = ["kind"]  # what else two kinds of stores say of themselves cannot be compared
        for key in keys:
            if name == "origin" and not (key in before and key in after):
                continue  # an instance more or less changes nothing of what the others have answered
            if before.get(key) != after.get(key):
                of = f" of {key!r}" if key else ""
                found.append(f"{name}{of} was {before.get(key)!r} and is {after.get(key)!r}")
    return found
