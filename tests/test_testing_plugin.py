"""The pytest plugin, in a project of a user."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

USERS_TEST = """
    import pytest
    from flinks_async import FlinksClient
    from flinks_async.errors import BadRequestError

    @pytest.mark.asyncio
    async def test_answer(flinks_client, flinks_server):
        assert isinstance(flinks_client, FlinksClient)
        answer = await flinks_client.partner_access("token-1")
        assert answer.to_dict() == flinks_server.expected("token-1")
        assert flinks_server.stats.requests == 1

    @pytest.mark.asyncio
    async def test_each_test_has_its_own(flinks_client, flinks_server):
        assert flinks_server.stats.requests == 0
        flinks_server.script("token-1", ["bad_request"])
        with pytest.raises(BadRequestError):
            await flinks_client.partner_access("token-1")

    def test_nothing_is_automatic(request):
        assert not [name for name in request.fixturenames if name.startswith("flinks")]
"""

INSTALLED = any(point.name == "flinks_async" for point in entry_points(group="pytest11"))
# Plugins that only make pytest start later are left out.
PLUGIN = (
    *("-p", "no:randomly", "-p", "no:schemathesis", "-p", "no:hypothesispytest", "-p", "no:xdist", "-W", "error"),
    *(() if INSTALLED else ("-p", "flinks_async.testing.pytest_plugin")),
)


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_a_users_project_passes(pytester: pytest.Pytester, mode: str) -> None:
    pytester.makeini(f"[pytest]\nasyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(USERS_TEST)
    result = pytester.runpytest_subprocess(*PLUGIN)
    result.assert_outcomes(passed=3)


def test_anyio_runs_the_fixtures_too(pytester: pytest.Pytester) -> None:
    pytest.importorskip("anyio")
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    pytester.makepyfile(USERS_TEST.replace("mark.asyncio", "mark.anyio"))
    pytester.runpytest_subprocess(*PLUGIN, "-p", "no:asyncio").assert_outcomes(passed=3)


def test_the_fixtures_are_documented(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    result = pytester.runpytest_subprocess(*PLUGIN, "--fixtures")
    result.stdout.fnmatch_lines(["flinks_server*", "*simulator on loopback*", "flinks_client*"])


def test_without_an_async_plugin_the_fixtures_say_what_they_need(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_x(flinks_client): pass\ndef test_y(): pass")
    result = pytester.runpytest_subprocess(*PLUGIN, "-p", "no:asyncio", "-p", "no:anyio")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*flinks_client needs an async plugin: pip install pytest-asyncio*"])


def test_names_are_loaded_when_they_are_used() -> None:
    code = (
        "import sys, flinks_async.testing.pytest_plugin as p, flinks_async.testing as t;"
        "loaded = [m for m in sys.modules if m.startswith('flinks_async.testing.')];"
        "assert loaded == ['flinks_async.testing.pytest_plugin'], loaded;"
        "assert 'aiohttp.web_server' in sys.modules or 'flinks_async.testing.server' not in sys.modules;"
        "[getattr(t, name) for name in t.__all__];"
        "assert sorted(t.__all__) == sorted(t._MODULES) == sorted(dir(t))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there() -> None:
    import flinks_async.testing

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = flinks_async.testing.nothing
