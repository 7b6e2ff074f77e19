"""Clients that are derived, shared and closed."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
from typing import Any

import pytest
from attrs import fields

from flinks_async import (
    ClientClosedError,
    ConfigError,
    FlinksClient,
    Request,
    Retry,
    Secret,
)
from flinks_async.client_options import ClientArguments, ClientOptions, DerivedArguments
from flinks_async.testing import (
    InMemoryTransport,
)

from .support import DOCUMENTED, client_of, turns


async def test_a_call_in_flight_has_some_grace_and_then_ends_with_an_error_of_ours() -> None:
    async def never(request: Request) -> Any:
        await asyncio.Event().wait()

    flinks = client_of(InMemoryTransport(default=never))
    task = asyncio.ensure_future(flinks.partner_access("t"))
    await turns()
    await flinks.close(grace=0.01)
    with pytest.raises(ClientClosedError, match="in flight"):
        await task
    assert not task.cancelled()
    with pytest.raises(ClientClosedError, match="is closed"):
        await flinks.partner_access("t")
    await flinks.close()


@pytest.mark.parametrize("grace", ["5", None, True, float("nan"), float("inf"), pytest.param(10**5000, id="huge"), [5]])
async def test_a_grace_that_is_no_number_closes_nothing(grace: Any) -> None:
    async with client_of(InMemoryTransport(default=DOCUMENTED)) as flinks:
        with pytest.raises(ConfigError, match="grace must be a number of seconds"):
            await flinks.close(grace=grace)
        assert not flinks.closed
        assert (await flinks.partner_access("t")).request_id == "r-1"


async def test_no_time_at_all_is_a_grace_too() -> None:
    for grace in (0, -1.5):
        flinks = client_of(InMemoryTransport(default=DOCUMENTED))
        await flinks.partner_access("t")
        await flinks.close(grace=grace)
        assert flinks.closed


async def test_a_call_that_ends_within_the_grace_is_answered() -> None:
    gate = asyncio.Event()

    async def when_open(request: Request) -> Any:
        await gate.wait()
        return DOCUMENTED

    flinks = client_of(InMemoryTransport(default=when_open))
    task = asyncio.ensure_future(flinks.partner_access("t"))
    await turns()
    closing = asyncio.ensure_future(flinks.close(grace=30))
    await turns()
    assert not closing.done()
    with pytest.raises(ClientClosedError):
        await flinks.partner_access("u")
    gate.set()
    await closing
    assert (await task).request_id == "r-1"


async def test_a_derived_client_shares_the_pool_and_closing_it_leaves_the_other_alone() -> None:
    transport = InMemoryTransport(default=DOCUMENTED)
    async with client_of(transport) as flinks:
        other = flinks.with_options(instance="acme-ca", auth_secret="another", retry=Retry(attempts=1))
        await other.partner_access("t")
        assert transport.requests[-1].host == "acme-ca-api.private.fin.ag"
        assert transport.requests[-1].secret == Secret("another")
        await other.close()
        assert other.closed
        assert not transport.closed
        await flinks.partner_access("t")
        third = flinks.with_options(app_name="x")
    assert transport.closed
    with pytest.raises(ClientClosedError):
        await third.partner_access("t")
    with pytest.raises(ClientClosedError):
        flinks.with_options()


class Tenant(FlinksClient):
    """A subclass with a constructor, attributes and a slot of its own."""

    __slots__ = ("region",)

    def __init__(self, tenant: str, transport: InMemoryTransport) -> None:
        super().__init__(auth_secret=f"secret of {tenant}", transport=transport)
        self.tenant = tenant
        self.region = "ca"


async def test_closing_reaches_a_client_whose_parent_was_collected() -> None:
    async with client_of(InMemoryTransport()) as root:
        last = root.with_options(app_name="between").with_options(app_name="last")
        gc.collect()
    assert last.closed


async def test_closing_reaches_a_client_that_others_were_derived_from_after_its_parent_was_collected() -> None:
    async with client_of(InMemoryTransport()) as root:
        middle = root.with_options(app_name="between").with_options(app_name="middle")
        gc.collect()
        last = middle.with_options(app_name="last")
        gc.collect()
    assert (middle.closed, last.closed) == (True, True)


async def test_closing_a_derived_client_closes_those_derived_from_it_and_no_others() -> None:
    async with client_of(InMemoryTransport()) as root:
        middle, sibling = root.with_options(app_name="middle"), root.with_options(app_name="sibling")
        last = middle.with_options(app_name="between").with_options(app_name="last")
        gc.collect()
        await middle.close()
        assert (middle.closed, last.closed, sibling.closed, root.closed) == (True, True, False, False)


@pytest.mark.parametrize("kept", [True, False])
async def test_a_long_chain_of_derived_clients_is_closed(kept: bool) -> None:
    clients = [client_of(InMemoryTransport())]
    for _ in range(1200):
        clients.append(clients[-1].with_options(app_name="x"))
    chain = clients if kept else [clients[0], clients[600], clients[-1]]
    del clients
    gc.collect()
    await chain[0].close()
    assert all(client.closed for client in chain)


async def test_clients_that_are_derived_one_after_the_other_are_not_kept() -> None:
    async with client_of(InMemoryTransport()) as root:
        client = root
        for _ in range(100):
            client = client.with_options(app_name="x")
        gc.collect()
        client = client.with_options(app_name="last")
        steps, lineage = 0, client._lineage.parent
        while lineage is not None:
            steps, lineage = steps + 1, lineage.parent
        assert steps <= 2


async def test_a_subclass_keeps_its_own_state_in_a_derived_client() -> None:
    transport = InMemoryTransport(default=DOCUMENTED)
    async with Tenant("acme", transport) as tenant:
        await tenant.partner_access("t")
        derived = tenant.with_options(app_name="x", retry={"attempts": 8})
        assert (type(derived), derived.tenant, derived.region) == (Tenant, "acme", "ca")
        assert derived.settings.retry.attempts == 8
        derived.tenant = "other"
        await derived.partner_access("t")
        await derived.partner_access("t")
        assert transport.requests[-1].secret == Secret("secret of acme")
        assert (tenant.tenant, tenant.stats().requests, derived.stats().requests) == ("acme", 1, 2)
        await derived.close()
        assert not tenant.closed


def test_the_constructor_the_typed_arguments_and_the_record_of_options_have_the_same_names() -> None:
    arguments = set(inspect.signature(FlinksClient).parameters)
    assert set(ClientArguments.__optional_keys__) == arguments
    assert set(DerivedArguments.__optional_keys__) == arguments - {"connection", "session", "transport"}
    merged = {"retry", "timeouts", "limits", "connection"}  # into `settings`
    assert {attribute.name for attribute in fields(ClientOptions)} == arguments - merged


@pytest.mark.parametrize("name", ["session", "transport", "connection", "nonsense"])
async def test_what_belongs_to_the_pool_cannot_be_derived(name: str) -> None:
    async with client_of(InMemoryTransport()) as flinks:
        with pytest.raises(ConfigError, match=name):
            flinks.with_options(**{name: None})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("settings", "bulk"),
        ("observers", 5),
        ("observers", [5]),
        ("middleware", None),
        ("attempt_middleware", 5),
        ("codec", 5),
        ("clock", 5),
        ("headers", [("a", "b")]),
        ("retry", {"throttle_statuses": 403}),
        ("retry", {"throttle_statuses": ["403"]}),
    ],
)
async def test_an_option_that_is_nonsense_is_named_when_it_is_set(option: str, value: Any) -> None:
    async with client_of(InMemoryTransport()) as flinks:
        with pytest.raises(ConfigError, match=next(iter(value)) if isinstance(value, dict) else option):
            flinks.with_options(**{option: value})


async def test_none_means_the_default_for_codec_and_clock_of_a_derived_client_too() -> None:
    async with client_of(InMemoryTransport(default=DOCUMENTED)) as flinks:
        derived = flinks.with_options(codec=None, clock=None)
        assert (await derived.partner_access("t")).request_id == "r-1"


async def test_a_client_refuses_to_be_pickled() -> None:
    async with client_of(InMemoryTransport()) as flinks:
        with pytest.raises(TypeError, match="refuses to be pickled"):
            pickle.dumps(flinks)
        with pytest.raises(TypeError, match="refuses to be pickled"):
            copy.copy(flinks)


def test_a_client_is_made_outside_a_loop_and_used_in_several() -> None:
    transport = InMemoryTransport(default=DOCUMENTED)
    flinks = client_of(transport)
    for _ in range(2):
        assert asyncio.run(flinks.partner_access("t")).request_id == "r-1"
    asyncio.run(flinks.close())
