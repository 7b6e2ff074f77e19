"""Google Cloud Storage and Azure: the requests of their clients. Google's are answered by the S3 server, whose protocol differs
little; Azure's by Azurite (`npm install azurite`), if it is installed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from flinks_async.bulk import Job, JSONLParts, StoreError, purge, verify
from flinks_async.bulk.objects import place_at
from flinks_async.bulk.stores import from_description

from ..server_desk import Desk
from .s3 import KEY_ID, S3, Asked, Reply
from .support import csv_of, names, parquet_of, put_tokens, run

pytest.importorskip("obstore")

AZURITE = shutil.which(os.environ.get("AZURITE", "azurite-blob"))
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account of every Azurite."""


SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY_ID}/20261128/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""moto looks at the account only."""


@pytest.fixture
def gs(bucket: str, s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """Google's XML API, as far as it differs: more is escaped, and what is not there cannot be deleted."""
    key = {"gcs_base_url": s3.environment["AWS_ENDPOINT_URL"], "disable_oauth": True}
    monkeypatch.setenv(
        "GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps({**key, "client_email": "", "private_key": "", "private_key_id": ""})
    )
    there = set[str]()

    def before(environ: dict[str, Any]) -> None:
        environ["HTTP_AUTHORIZATION"] = SIGNED
        for name in ("REQUEST_URI", "RAW_URI"):
            path, mark, query = environ[name].partition("?")
            environ[name] = quote(unquote(path)) + mark + query

    def after(asked: Asked, reply: Reply) -> None:
        if asked.method == "PUT":
            there.add(asked.path)
            reply.headers.append(("x-goog-generation", str(len(there))))
        elif asked.method == "DELETE" and asked.path not in there:
            reply.status = "404 Not Found"
        elif asked.method == "DELETE":
            there.remove(asked.path)

    s3.before, s3.after = before, after
    return bucket.replace("s3://", "gs://")


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if AZURITE is None:
        pytest.skip("Azurite is not installed: npm install -g azurite")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [
        AZURITE,
        "--silent",
        "--disableTelemetry",
        "--inMemoryPersistence",
        "--skipApiVersionCheck",
        "--blobPort",
        str(port),
    ]
    process = subprocess.Popen(arguments, cwd=tmp_path_factory.mktemp("azurite"), stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def az(azurite: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new container."""
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", azurite)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    name, date = f"c-{uuid.uuid4().hex[:12]}", formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n"
    text = "PUT" + "\n" * 12 + f"{headers}/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signed = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
    request = urllib.request.Request(
        f"{azurite}/{ACCOUNT}/{name}?restype=container",
        method="PUT",
        headers={"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {ACCOUNT}:{signed}"},
    )
    urllib.request.urlopen(request).close()
    return f"az://{name}"


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


@pytest.mark.parametrize("kind", ["jsonl-parts", "parquet"])
async def test_a_job_from_and_to_a_cloud(desk: Desk, cloud: str, kind: str, tmp_path: Path) -> None:
    data = parquet_of(tmp_path, 60, 20) if kind == "parquet" else csv_of(60)
    tokens = put_tokens(f"{cloud}/in/tokens é.{'parquet' if kind == 'parquet' else 'csv'}", data)
    url = f"{cloud}/a é%41+b/out"
    store = from_description({"kind": kind, "url": url})
    result = await run(desk, store, tokens)
    assert (result.state, result.totals.fetched) == ("complete", 60)
    assert verify(desk.directory) == []
    folder = store.folders[0]
    files = [name for name in names(url, folder) if name != "_SUCCESS"]
    assert len(files) == 6
    place = place_at(url, Path())
    orphan = files[0].replace("000000", "000077")
    place.put(orphan, b"")
    (problem,) = verify(desk.directory)
    assert problem.where == f"{url}/{orphan}"
    with Job.resume(desk.directory):
        assert orphan not in names(url, folder), "the start sweeps"
    place.delete([files[2]])
    assert any("there is no such object" in problem.what for problem in verify(desk.directory))
    with pytest.raises(StoreError, match="Nothing was removed"):
        purge(desk.directory)
    purge(desk.directory, forget_answers=True)
    assert names(url, "", "_flinks", folder) == []


def test_a_place_in_a_cloud(cloud: str) -> None:
    place = place_at(f"{cloud}/out", Path())
    for name in ("a", "in/1", "in/2", "in/deep/3", "inside", "z/1", "zz"):
        place.put(name, name.encode() * 100)
    assert [found.name for found in place.list("")] == ["a", "inside", "zz"]
    assert [found.name for found in place.list("in")] == ["in/1", "in/2"]
    with place.at("in/deep/3").open("rb") as file:
        file.seek(850)
        assert file.read() == (b"in/deep/3" * 100)[850:]
    place.delete(["nothing", "a", "nothing else", "zz"])
    assert [found.name for found in place.list("")] == ["inside"]
    assert place.find("a") is None
    with pytest.raises(FileNotFoundError):
        place.at("a").open("rb")


@pytest.mark.parametrize("scheme", ["gs", "az"])
async def test_a_bucket_or_container_that_does_not_exist_is_named_as_such(
    desk: Desk, scheme: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(scheme)
    with pytest.raises(StoreError, match=r"the (bucket|container) does not exist"):
        await run(desk, JSONLParts(url=f"{scheme}://no-such-place-here/out"))
