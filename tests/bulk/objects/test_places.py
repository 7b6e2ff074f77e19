"""URLs, credentials, and what every place of files does."""

from __future__ import annotations

import pickle
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import (
    InputBytes,
    InputFile,
    Job,
    JSONLFile,
    JSONLParts,
    Processes,
    SQLiteStore,
    StoreError,
    export,
    status,
    verify,
)
from flinks_async.bulk.objects import Bucket, Folder, place_at

from ..server_desk import Desk
from .s3 import KEY_ID, S3, SECRET_KEY
from .support import run

pytest.importorskip("obstore")


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:hunter2@bucket/out", "s3://hunter2@bucket", "s3://bucket/out?aws_secret_access_key=hunter2", "s3://",
        "s3:///hunter2", "s3://bucket/a//hunter2", "s3://bucket/../hunter2", "https://hunter2.s3.amazonaws.com/x", "hunter2",
        "file://hunter2/x", "file:///", "S3://bucket/hunter2", 7, Path("/hunter2"),
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        JSONLParts(url=url)
    assert "hunter2" not in str(caught.value)
    assert str(caught.value)


@pytest.mark.parametrize("make", [JSONLFile, SQLiteStore, InputFile, status, verify])
def test_what_grows_cannot_be_at_a_url(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if make is InputFile:
        with pytest.raises(ConfigError, match="must be on a disk, not at a URL"):
            Job.start("s3://bucket/job", InputBytes(b"token-1\n"), JSONLParts())
    else:
        with pytest.raises(ConfigError, match="must be on a disk, not at a URL"):
            make("s3://bucket/answers")
    assert list(tmp_path.iterdir()) == []


async def test_no_credential_is_shown_or_kept(
    desk: Desk, bucket: str, s3: S3, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(0)
    store = JSONLParts(url=bucket)
    await run(desk, store, executor=Processes(2))
    place = place_at(bucket, Path())
    shown = [repr(store), str(vars(store)), repr(place), pickle.dumps(store.describe()).decode("latin-1"), caplog.text]
    shown += [path.read_bytes().decode("latin-1") for path in desk.directory.rglob("*") if path.is_file()]
    for status_code, text in ((403, "403"), (404, "is missing"), (301, "which AWS_REGION must name"), (500, "500")):
        s3.fault = lambda asked, code=status_code: code
        with pytest.raises(StoreError, match=text) as caught:
            list(export(desk.directory))
        shown += [str(caught.value), repr(caught.value), "".join(traceback.format_exception(caught.value))]
        assert caught.value.__context__ is None or isinstance(caught.value.__context__, OSError)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="there is no connection") as caught:
        verify(desk.directory)
    shown.append("".join(traceback.format_exception(caught.value)))
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError, match="not https, and AWS_ALLOW_HTTP is not true") as caught:
        verify(desk.directory)
    shown.append("".join(traceback.format_exception(caught.value)))
    for text in shown:
        assert SECRET_KEY not in text
        assert KEY_ID not in text


def test_credentials_of_a_profile(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "work")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text(
        f"[work]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    place = place_at(bucket, Path())
    place.put("a", b"1")
    assert [found.name for found in place.list("")] == ["a"]
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(ConfigError, match=r"the profile of AWS_PROFILE cannot be used \(ProfileNotFound\)"):
        place_at(bucket, Path())


@pytest.mark.parametrize("store", ["memory", "folder", "s3"])
def test_a_place(store: str, bucket: str, tmp_path: Path) -> None:
    """What every place does."""
    from obstore.store import MemoryStore

    places = {
        "memory": Bucket("s3://memory", MemoryStore()),
        "folder": Folder(tmp_path),
        "s3": place_at(bucket, Path()),
    }
    place = places[store]
    place.prepare(["", "sub"])
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 1000)
    place.put("sub/ä b?", source)
    place.put("top", b"one")
    place.put("top", b"two!")
    assert {found.name for found in place.list("sub")} == {"sub/ä b?"}
    assert "top" in {found.name for found in place.list("")}
    found = place.find("sub/ä b?")
    assert found is not None
    assert found.size == 256_000
    assert abs(found.modified - time.time()) < 60
    assert place.find("nothing") is None
    assert list(place.list("nothing")) == []
    with place.at("sub/ä b?").open("rb") as file:
        assert file.read(3) == b"\0\1\2"
        assert file.seek(255_990) == 255_990
        assert file.read() == bytes(range(246, 256))
        assert file.read(10) == b""
        file.seek(-5, 2)
        assert file.read(100) == bytes(range(251, 256))
        file.seek(0)
        assert b"".join(iter(lambda: file.read(1000), b"")) == bytes(range(256)) * 1000
    with pytest.raises(FileNotFoundError):
        place.at("nothing").open("rb")
    place.delete(["nothing", "top"])
    assert place.find("top") is None
    place.delete([])


def test_an_object_that_changes_while_it_is_read(bucket: str) -> None:
    place = place_at(bucket, Path())
    place.put("a", b"x" * 200_000)
    with place.at("a").open("rb") as file:
        assert file.read(10) == b"x" * 10
        place.put("a", b"y" * 200_000)
        assert file.read(10) == b"x" * 10, "already there"
        with pytest.raises(OSError, match="the object was changed"):
            file.read(100_000)
