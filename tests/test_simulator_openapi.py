"""The simulated Flinks conforms to the published operation, and to a listed patch where it does more."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from flinks_async.testing import Faults, FlinksServer

OPENAPI = Path(__file__).parent / "openapi"
PUBLISHED: dict[str, Any] = json.loads((OPENAPI / "partner_access.json").read_text())
PATCH: list[dict[str, Any]] = json.loads((OPENAPI / "simulator.patch.json").read_text())
PATH = "/partneraccess/{accesstoken}"

# Checks of a reply alone, independent of its request.
ABOUT_THE_REPLY = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def patched() -> dict[str, Any]:
    """The published document with the patch (JSON Patch, RFC 6902: `add` and `replace` in objects and lists)."""
    document = copy.deepcopy(PUBLISHED)
    for step in PATCH:
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in step["path"].split("/")[1:])
        place: Any = document
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        assert (last in place) == (step["op"] == "replace"), f"{step['op']} {step['path']}"
        place[last] = step["value"]
    return document


async def conforms(server: FlinksServer, document: dict[str, Any], examples: int = 40, **options: Any) -> None:
    """Sends generated requests and checks every reply. schemathesis blocks, so it has a thread of its own."""

    def run() -> None:
        operation = schemathesis.openapi.from_dict(document)[PATH]["GET"]
        with requests.Session() as session:
            session.trust_env = False

            @hypothesis.settings(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
            def check(case: schemathesis.Case) -> None:
                headers = {"flinks-auth-key": f"Bearer {server.auth_secret}"}
                case.call_and_validate(server.base_url, session=session, headers=headers, **options)

            check()

    await asyncio.to_thread(run)


@pytest.mark.parametrize(
    ("shape", "size"), [("list", "small"), ("object", "small"), ("null", "small"), ("list", "medium")]
)
async def test_every_answer_conforms_to_the_patched_document(shape: Any, size: Any) -> None:
    async with FlinksServer(shape=shape, size=size) as server:
        await conforms(server, patched())
        assert server.stats.answered >= 20
        assert server.stats.statuses[401] > 0, "schemathesis tries without the secret"


async def test_an_object_conforms_to_the_document_as_it_is_published() -> None:
    async with FlinksServer(shape="object") as server:
        await conforms(server, PUBLISHED, checks=ABOUT_THE_REPLY)
        assert server.stats.answered >= 20


async def test_faults_with_an_envelope_conform() -> None:
    kinds = (
        "bad_request",
        "session_nonexistent",
        "operation_pending",
        "too_many_requests",
        "too_many_requests_403",
        "retry_later",
        "aggregation_error",
    )
    async with FlinksServer(faults=Faults(share=0.9, kinds=kinds)) as server:
        await conforms(server, patched(), checks=ABOUT_THE_REPLY, examples=80)
        assert set(server.stats.faults) == set(kinds)


@pytest.mark.parametrize(
    "answer",
    [
        {"GetAccountsDetail": "text", "RequestId": "d3b9a1c6-2f0e-4f0a-9f63-0a8f3d1a6b52"},
        {
            "GetAccountsDetail": [{"LoginId": 1, "CustomerId": None}],
            "RequestId": "d3b9a1c6-2f0e-4f0a-9f63-0a8f3d1a6b52",
        },
        {"GetAccountsDetail": []},
        [],
    ],
)
async def test_another_shape_would_be_noticed(answer: Any) -> None:
    class OtherShape(FlinksServer):
        def _body(self, token: str) -> bytes:
            return json.dumps(answer).encode()

    async with OtherShape() as server:
        with pytest.raises(FailureGroup, match=r"(?i)schema"):
            await conforms(server, patched(), examples=5)


async def test_a_status_that_is_not_documented_would_be_noticed() -> None:
    async with FlinksServer(faults=Faults(share=1, kinds=("http_429",))) as server:
        with pytest.raises(FailureGroup, match=r"(?i)undocumented"):
            await conforms(server, patched(), examples=5)


def test_every_step_of_the_patch_says_why() -> None:
    assert all(step["why"] for step in PATCH)
