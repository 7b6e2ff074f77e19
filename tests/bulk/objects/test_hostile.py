"""Object storage that is hostile: late lists, small pages, missing ETags, odd names, storms of refusals. Each ends in the right
result or in a clear error.
"""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from flinks_async.bulk import InputFile, JobLockedError, JSONLParts, StoreError, export, purge, verify
from flinks_async.bulk import objects as module
from flinks_async.bulk.objects import place_at

from ..server_desk import Desk
from .s3 import S3, Asked, Reply
from .support import COLUMNS, csv_of, names, put_tokens, run

pytest.importorskip("obstore")

REPEATED: Any = module._RETRY
"""Without the change that the fixture makes."""


def without(*names: str) -> Any:
    """Answers lack these headers."""

    def after(asked: Asked, reply: Reply) -> None:
        reply.headers = [(name, value) for name, value in reply.headers if name.lower() not in names]

    return after


def etags(change: Any) -> Any:
    """Changes the ETag of each answer, by method."""

    def after(asked: Asked, reply: Reply) -> None:
        reply.headers = [(n, change(asked.method, v) if n.lower() == "etag" else v) for n, v in reply.headers]

    return after


def list_by_ones(environ: dict[str, Any]) -> None:
    if "list-type" in environ.get("QUERY_STRING", ""):
        environ["QUERY_STRING"] += "&max-keys=1"
        environ["REQUEST_URI"] = environ["RAW_URI"] = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"


async def test_a_list_with_pages_of_one_name_is_whole(desk: Desk, bucket: str, s3: S3) -> None:
    s3.before = list_by_ones
    desk.write(60)
    await run(desk, JSONLParts(url=f"{bucket}/out"))
    lists = sum(asked.method == "GET" and "list-type" in asked.path for asked in s3.asked)
    assert lists > 8
    assert verify(desk.directory) == []
    assert len(names(f"{bucket}/out")) == 7
    purge(desk.directory)
    assert names(f"{bucket}/out", "", "_flinks") == []


@pytest.mark.parametrize(
    "after",
    [
        etags(lambda method, value: f"W/{value}"),
        etags(lambda method, value: f"W/{value}" if method == "HEAD" else value),
        etags(lambda method, value: '"0123456789abcdef0123456789abcdef-12"'),
        etags(lambda method, value: value.strip('"')),
    ],
    ids=["weak", "weak for HEAD", "multipart", "without quotes"],
)
async def test_odd_etags(desk: Desk, bucket: str, s3: S3, after: Any) -> None:
    tokens = put_tokens(f"{bucket}/in/tokens.csv", csv_of(30))
    s3.after = after
    result = await run(desk, JSONLParts(url=f"{bucket}/out"), tokens)
    assert (result.state, result.totals.fetched) == ("complete", 30)
    assert verify(desk.directory) == []


async def test_a_storage_without_etags_is_named_as_such(desk: Desk, bucket: str, s3: S3) -> None:
    """Tokens are read; parts cannot be written."""
    tokens = put_tokens(f"{bucket}/in/tokens.csv", csv_of(30))
    s3.after = without("etag")
    assert (await run(desk, JSONLParts(), tokens)).totals.fetched == 30
    desk.directory = desk.directory.with_name("second")
    with pytest.raises(StoreError, match=f"{bucket}/out cannot be written: its answers have no ETag"):
        await run(desk, JSONLParts(url=f"{bucket}/out"), tokens)


@pytest.mark.parametrize(
    "name", ["ä ö", "a b", "100%", "a%41", "a%2Fb", "a+b", "a~b", "a#b", "a=b&c", "a'b(c)", "日本", "a:b;c,d"]
)
def test_names_are_those_that_other_tools_see(bucket: str, s3: S3, name: str, tmp_path: Path) -> None:
    """boto3 sees the names as they were written, and its own are found."""
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3.port}", region_name="us-east-1")
    client.put_object(Bucket=bucket[5:], Key=f"{name}/tokens {name}.csv", Body=csv_of(20))
    assert InputFile(f"{bucket}/{name}/tokens {name}.csv", COLUMNS).size == len(csv_of(20))
    place = place_at(f"{bucket}/{name}/out", tmp_path)
    place.put("answers", b"1")
    assert [found.name for found in place.list("")] == ["answers"]
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket[5:])["Contents"]]
    assert sorted(keys) == sorted([f"{name}/tokens {name}.csv", f"{name}/out/answers"])
    place.delete(["answers"])
    assert names(f"{bucket}/{name}/out") == []


async def test_an_endpoint_with_a_path(desk: Desk, bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    def strip(environ: dict[str, Any]) -> None:
        assert environ["PATH_INFO"].startswith("/storage/s3/")
        for name in ("PATH_INFO", "REQUEST_URI", "RAW_URI"):
            environ[name] = environ[name].removeprefix("/storage/s3")

    s3.before = strip
    desk.write(60)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3.port}/storage/s3/")
    await run(desk, JSONLParts(url=f"{bucket}/out"))
    assert verify(desk.directory) == []
    assert len(names(f"{bucket}/out")) == 7


def test_a_range_that_is_answered_with_the_whole(bucket: str, s3: S3) -> None:
    put_tokens(f"{bucket}/tokens.csv", csv_of(5000))

    def whole(environ: dict[str, Any]) -> None:
        environ.pop("HTTP_RANGE", None)

    s3.before = whole
    with pytest.raises(Exception, match="it ignores ranges"):
        InputFile(f"{bucket}/tokens.csv", COLUMNS)


def test_an_answer_that_is_shorter_than_it_says(bucket: str, s3: S3) -> None:
    put_tokens(f"{bucket}/a", bytes(range(256)) * 400)

    def short(asked: Asked, reply: Reply) -> None:
        if asked.method == "GET":
            reply.body = reply.body[:-7]
            reply.headers = [
                (n, str(len(reply.body)) if n.lower() == "content-length" else v) for n, v in reply.headers
            ]

    s3.after = short
    with (
        place_at(bucket, Path()).at("a").open("rb") as file,
        pytest.raises(OSError, match=r"fewer bytes|object storage"),
    ):
        file.read()


async def test_deletes_that_are_refused_one_by_one_within_an_answer_of_200(desk: Desk, bucket: str, s3: S3) -> None:
    desk.write(10)
    await run(desk, JSONLParts(url=bucket))

    def refuse(asked: Asked, reply: Reply) -> None:
        if asked.method == "POST":
            refusal = b"<Code>AccessDenied</Code><Message>no</Message></Error>"
            reply.body = reply.body.replace(b"<Deleted>", b"<Error>").replace(b"</Deleted>", refusal)
            reply.headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(reply.body)))]

    s3.after = refuse
    with pytest.raises(StoreError, match="permission is denied"):
        purge(desk.directory)
    s3.after = None
    purge(desk.directory)
    assert names(bucket, "", "_flinks") == []


async def test_a_login_page_in_place_of_a_storage_is_never_taken_for_one(desk: Desk, bucket: str, s3: S3) -> None:
    desk.write(10)
    await run(desk, JSONLParts(url=f"{bucket}/out"))

    def portal(asked: Asked, reply: Reply) -> None:
        reply.status, reply.body = "200 OK", b"<html><body>Please log in</body></html>"
        reply.headers = [("Content-Type", "text/html"), ("Content-Length", str(len(reply.body)))]

    s3.after = portal
    with pytest.raises(StoreError, match="it ignores ranges"):
        list(export(desk.directory))
    desk.directory = desk.directory.with_name("second")
    with pytest.raises(StoreError, match=r"its answers have no ETag|object storage failed"):
        await run(desk, JSONLParts(url=f"{bucket}/new"))
    assert desk.server.stats.requests == 10


def test_refusals_are_repeated_for_as_long_as_is_said(bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only ten times, which is two seconds when a storage refuses at once."""
    backoff = REPEATED["backoff"]
    assert REPEATED["max_retries"] * backoff["init_backoff"].total_seconds() > module._PATIENCE
    quick = {**backoff, "init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2)}
    monkeypatch.setattr(module, "_RETRY", {**REPEATED, "backoff": quick})
    place = place_at(bucket, Path())
    for status in (503, 500, 429):
        left = iter(range(50))
        s3.fault = lambda asked, left=left, status=status: (
            (status, "SlowDown") if next(left, None) is not None else None
        )
        place.put("a", b"1")
        assert next(left, None) is None


async def test_credentials_that_expire_in_the_middle_end_the_run_and_nothing_is_lost(
    desk: Desk, bucket: str, s3: S3
) -> None:
    desk.write(60)
    s3.fault = lambda asked: (400, "ExpiredToken") if s3.count("PUT") > 4 else None  # two marks and two parts
    with pytest.raises(StoreError, match="the credentials have expired"):
        await run(desk, JSONLParts(url=bucket))
    s3.fault = lambda asked: None
    assert (await run(desk, JSONLParts(url=bucket))).state == "complete"
    assert set(desk.answers) == set(range(2, 62))
    assert verify(desk.directory) == []


class LateList:
    """Each list is answered as it was when it was last asked for."""

    def __init__(self) -> None:
        self.before = dict[str, bytes]()

    def __call__(self, asked: Asked, reply: Reply) -> None:
        if asked.method == "GET" and "list-type" in asked.path:
            now, reply.body = reply.body, self.before.get(asked.path, reply.body)
            self.before[asked.path] = now
            reply.headers = [
                (n, str(len(reply.body)) if n.lower() == "content-length" else v) for n, v in reply.headers
            ]


async def test_lists_that_come_late_lose_nothing(desk: Desk, bucket: str, s3: S3) -> None:
    """An orphan may stay until a later start; no part is taken for one."""
    s3.after = LateList()
    desk.write(60)
    with pytest.raises(StoreError):
        s3.fault = lambda asked: (
            403 if asked.method == "PUT" and asked.path.count("answers") and next(left) > 2 else None
        )
        left = count()
        await run(desk, JSONLParts(url=bucket))
    s3.fault = lambda asked: None
    assert (await run(desk, JSONLParts(url=bucket))).state == "complete"
    assert set(desk.answers) == set(range(2, 62))
    s3.after = None
    await run(desk, JSONLParts(url=bucket))
    assert verify(desk.directory) == []
    assert len(names(bucket)) == 7


async def test_a_list_that_does_not_show_a_new_mark_is_a_clear_error(desk: Desk, bucket: str, s3: S3) -> None:
    def empty(asked: Asked, reply: Reply) -> None:
        if asked.method == "GET" and "list-type" in asked.path:
            reply.body = re.sub(rb"<Contents>.*</Contents>", b"", reply.body, flags=re.DOTALL)
            reply.headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(reply.body)))]

    s3.after = empty
    with pytest.raises(JobLockedError, match=f"another program begins to write to {bucket}. Run this again"):
        await run(desk, JSONLParts(url=bucket))
    s3.after = None
    assert names(bucket, "", "_flinks") == [], "it leaves no mark"
    assert (await run(desk, JSONLParts(url=bucket))).state == "complete"
