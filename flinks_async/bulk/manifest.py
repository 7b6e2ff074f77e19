"""The identity of a job: written once, when it begins, and compared whenever it is resumed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from attrs import asdict, evolve, field, frozen

from .errors import InputError, JobMismatchError, LedgerError
from .files import newer_version, write_durably
from .inputs import Layout

VERSION: Final = 1


@frozen
class Manifest:
    """A job's identity. It holds no token and no secret.

    Attributes:
        job: 32 hexadecimal digits.
        created: UTC, ISO 8601.
        path: absolute path of the input.
        size: bytes of the input.
        sha256: SHA-256 of the input's bytes.
        layout: how the input is read.
        origin: the host that answers, by the name of the instance ("" for rows that name none).
        store: the description of the store. In the file, a path in the job's directory is relative, so that the directory
            may be moved.
        shard_size: tokens in a shard.
        version: format of this file.
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
        """The content of the file.

        Raises:
            InputError: a path is not UTF-8, so it could not be found again.
        """
        try:
            return msgspec.json.format(msgspec.json.encode(asdict(self)), indent=2) + b"\n"
        except UnicodeEncodeError:
            pass
        raise InputError("The path of the file of tokens or of the output is not UTF-8. Rename the file or its folder.")

    def save(self, path: Path) -> None:
        """Writes the file.

        Raises:
            StoreError: it cannot be written.
        """
        write_durably(path, evolve(self, store=_relative(self.store, path.parent)).to_json())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Reads the file.

        Raises:
            JobMismatchError: it does not exist.
            LedgerError: it is broken, or was written by a newer version.
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
                raise LedgerError(newer_version(path, version))
            manifest = msgspec.convert(values, cls)
            msgspec.convert(manifest.layout, Layout)
            return evolve(manifest, store=_absolute(manifest.store, path.parent))
        except (msgspec.DecodeError, TypeError, KeyError):
            pass
        raise LedgerError(f"{path} is broken")

    def same_store(self, described: Mapping[str, Any], directory: Path) -> bool:
        """Whether a description is that of the job's store, even if the job's directory was moved."""
        return _relative(self.store, directory) == _relative(described, directory)

    def refuse_other(self, other: Manifest, directory: Path) -> None:
        """Compares with the job that is asked for now.

        Raises:
            JobMismatchError: they differ. The message lists the differences.
        """
        if self.same_store(other.store, directory):
            other = evolve(other, store=self.store)
        found = list(_differences(self, other))
        if found:
            raise JobMismatchError(
                f"{directory} belongs to another job: {'; '.join(found)}. "
                "Choose another directory, or repeat the job's own settings"
            )


def _relative(store: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A store's description; its path is relative if it is in the job's directory."""
    path = store.get("path")
    if isinstance(path, str):
        try:  # resolves the folder only, because the file may be a link
            inside = Path(os.path.realpath(Path(path).parent)).relative_to(os.path.realpath(directory))
        except ValueError:
            return dict(store)
        return {**store, "path": (inside / Path(path).name).as_posix()}
    return dict(store)


def _absolute(store: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A store's description with an absolute path."""
    path = store.get("path")
    return {**store, "path": str(directory.absolute() / path)} if isinstance(path, str) else dict(store)


def _differences(was: Manifest, now: Manifest) -> list[str]:
    found = []
    if (was.size, was.sha256) != (now.size, now.sha256):
        found.append(f"the file of tokens has changed (it had {was.size:,} bytes and has {now.size:,})")
    for name in ("layout", "origin", "store"):
        before, after = getattr(was, name), getattr(now, name)
        keys = sorted({*before, *after})
        if name == "store" and before.get("kind") != after.get("kind"):
            keys = ["kind"]  # other settings of two kinds of stores cannot be compared
        for key in keys:
            if name == "origin" and not (key in before and key in after):
                continue  # a new or missing instance does not affect the answers of the others
            if before.get(key) != after.get(key):
                found.append(f"{_subject(name, key)} was {_shown(before.get(key))} and is now {_shown(after.get(key))}")
    return found


def _subject(name: str, key: str) -> str:
    """What differs, in words. Fields of `Layout` are in backticks."""
    if name == "layout":
        return f"`{key}`"
    if name == "origin":
        return f"the host of the instance {key}" if key else "the host"
    return "the store" if key == "kind" else f"the {key} of the store"


def _shown(value: object) -> str:
    names = {None: "not set", "jsonl-parts": "one JSONL file per shard", "jsonl": "one JSONL file"}
    return names.get(value, str(value)) if isinstance(value, str | None) else str(value)
