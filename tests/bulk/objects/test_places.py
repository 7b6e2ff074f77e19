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
    InputError,
    InputFile,
    Job,
    JobMismatchError,
    JSONLFile,
    JSONLParts,
    Processes,
    SQLiteStore,
    StoreError,
    export,
    purge,
    status,
    verify,
)
from flinks_async.bulk import objects as module
from flinks_async.bulk.objects import Bucket, Folder, place_at

from ..server_desk import Desk
from .s3 import KEY_ID, S3, SECRET_KEY
from .support import job_at, names, run

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


REFUSALS = [
    (404, "NoSuchBucket", "the bucket does not exist (status 404, NoSuchBucket). Create it, or correct the URL"),
    (403, "InvalidAccessKeyId", "the access key is unknown (status 403, InvalidAccessKeyId)"),
    (403, "SignatureDoesNotMatch", "the secret access key is wrong (status 403, SignatureDoesNotMatch)"),
    (403, "RequestTimeTooSkewed", "the clock of this machine is wrong (status 403, RequestTimeTooSkewed)"),
    (
        403,
        "AccessDenied",
        "permission is denied (status 403, AccessDenied). The credentials must allow to get, put, list",
    ),
    (400, "ExpiredToken", "the credentials have expired (status 400, ExpiredToken)"),
    (400, "AuthorizationHeaderMalformed", "the bucket is in another region, which AWS_REGION must name (status 400"),
    (503, "SlowDown", "the storage asks for fewer requests (status 503, SlowDown)"),
    (400, "SomethingNew", "the object storage failed (status 400, SomethingNew)"),
]


@pytest.mark.parametrize(("status_code", "code", "words"), REFUSALS)
async def test_a_refusal_says_why_also_to_the_first_request(
    desk: Desk, bucket: str, s3: S3, status_code: int, code: str, words: str
) -> None:
    """The answer to HEAD has no body, so only a GET tells."""
    s3.fault = lambda asked: (status_code, code)
    with pytest.raises(StoreError) as caught:
        job_at(desk, JSONLParts(url=bucket))
    assert words in caught.value.message
    with pytest.raises(InputError) as refused:
        InputFile(f"{bucket}/tokens.csv")
    assert words in refused.value.message


def test_a_bucket_that_does_not_exist_is_named_as_such_for_tokens(s3: S3) -> None:
    with pytest.raises(InputError, match="the bucket does not exist"):
        InputFile("s3://no-such-bucket-here/tokens.csv")


@pytest.mark.parametrize("endpoint", ["127.0.0.1", "storage.example:9000", "ftp://storage.example", "https://"])
def test_an_endpoint_that_is_no_url_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Rust would panic, and print a stack trace."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL must be a URL, such as https"):
        place_at(bucket, Path())


def test_a_panic_of_rust_is_an_error_like_others() -> None:
    class PanicException(BaseException):
        pass

    def panic() -> None:
        raise PanicException("canary")

    with pytest.raises(OSError, match=r"^\[Errno 5\] the object storage failed \(PanicException\)$"):
        module._ask(panic)


def test_folders_inside_are_skipped_when_a_place_is_listed(bucket: str, s3: S3) -> None:
    """Also large ones: a request for each of them."""
    place = place_at(f"{bucket}/out", Path())
    for name in ("a", "in/1", "in/2", "in/deep/3", "inside", "z/1", "zz"):
        place.put(name, b"")
    s3.asked.clear()
    assert [found.name for found in place.list("")] == ["a", "inside", "zz"]
    assert len(s3.asked) == 3
    assert [found.name for found in place.list("in")] == ["in/1", "in/2"]
    assert list(place.list("nothing")) == []


async def test_a_place_with_the_output_of_another_program_is_refused_and_other_objects_are_left(
    desk: Desk, bucket: str
) -> None:
    place = place_at(bucket, Path())
    place.put("_SUCCESS", b"")
    place.put("part-00000.snappy.parquet", b"x")
    with pytest.raises(JobMismatchError, match=r"holds the output of another program, which has an object _SUCCESS"):
        job_at(desk, JSONLParts(url=bucket))
    assert names(bucket, "", "_flinks") == ["_SUCCESS", "part-00000.snappy.parquet"]
    place.delete(["_SUCCESS"])
    await run(desk, JSONLParts(url=bucket))
    assert verify(desk.directory) == []
    place.delete(names(bucket, "_flinks"))
    await run(desk, JSONLParts(url=bucket))
    purge(desk.directory)
    assert names(bucket, "", "_flinks") == ["part-00000.snappy.parquet"]
