"""Jobs whose tokens name their instance: `--instance-column` and `--instances`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flinks_async.cli import Exit
from flinks_async.testing import FlinksServer

from .cli_support import cli, records
from .test_cli_job import answers, write

SECRET = "canary-secret-5c1e"


@pytest.fixture
async def other_server() -> AsyncIterator[FlinksServer]:
    async with FlinksServer(auth_secret=SECRET, auth_scheme="bearer", seed=7) as server:
        yield server


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "t.csv", "token,place\na-1,acme\nb-1,beta-ca\na-2,acme\nc-1,gamma\nd-1,\n")


@pytest.fixture
def instances(flinks_server: FlinksServer, other_server: FlinksServer, tmp_path: Path) -> Path:
    write(tmp_path / "beta.secret", f"{SECRET}\n")
    return write(
        tmp_path / "instances.toml",
        f'[acme]\nsecret_env = "ACME_SECRET"\nbase_url = "{flinks_server.base_url}"\n'
        f'[beta-ca]\nsecret_file = "beta.secret"\nauth_scheme = "bearer"\nbase_url = "{other_server.base_url}"\n',
    )


async def test_each_token_goes_to_its_instance_with_the_right_secret(
    flinks_server: FlinksServer, other_server: FlinksServer, tokens: Path, instances: Path, tmp_path: Path
) -> None:
    write(tokens, tokens.read_text().replace("c-1,gamma\n", ""))
    job = tmp_path / "job"
    args = ("fetch", tokens, "--job", job, "--column", "token", "--instance-column", "place", "--instances", instances)
    result = await cli(*args, ACME_SECRET=flinks_server.auth_secret)
    assert result.exit_code == Exit.FAILED, result.stderr
    assert answers(job) == {
        2: flinks_server.expected("a-1"),
        3: other_server.expected("b-1"),
        4: flinks_server.expected("a-2"),
    }
    failed = {record["line"]: record for record in records(job / "failed.jsonl")}
    assert failed[5]["message"] == "the instance is missing"
    again = await cli("retry", job, "--class", "all", "--instances", instances, ACME_SECRET=flinks_server.auth_secret)
    assert again.exit_code == Exit.FAILED
    assert (flinks_server.stats.requests, other_server.stats.requests) == (2, 1)


async def test_an_instance_without_settings_is_named_at_once_and_with_them_the_same_command_goes_on(
    flinks_server: FlinksServer, tokens: Path, instances: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job"
    env = {"ACME_SECRET": flinks_server.auth_secret}
    args = ("fetch", tokens, "--job", job, "--column", "token", "--instance-column", "place", "--instances", instances)
    result = await cli(*args, **env)
    assert result.exit_code == Exit.USAGE
    assert "no settings for these instances of the input: 'gamma' (1 tokens); nothing was sent" in result.stderr
    assert flinks_server.stats.requests == 0
    with instances.open("a") as more:
        more.write(f'[gamma]\nsecret_env = "ACME_SECRET"\nbase_url = "{flinks_server.base_url}"\n')
    await cli(*args, **env)
    assert answers(job).keys() == {2, 3, 4, 5}


async def test_a_dry_run_tells_the_instances(tokens: Path) -> None:
    result = await cli("fetch", tokens, "--column", "token", "--instance-column", "place", "--dry-run")
    assert result.exit_code == Exit.OK, result.stderr
    assert [line.split()[:2] for line in result.stdout.splitlines() if "this instance" in line] == [
        ["acme", "2"], ["beta-ca", "1"], ["gamma", "1"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[acme]\n= 1", "not TOML (at line 2, column 1)"),
        ("", "names no instance"),
        ('acme = "canary-secret-5c1e"', "[acme] must be a table"),
        ('["a b"]\nsecret_env = "X"', "the name of a table must be that of a Flinks instance"),
        ("[acme]", "[acme] must have secret_env or secret_file, and not both"),
        ('[acme]\nsecret_env = "A"\nsecret_file = "b"', "[acme] must have secret_env or secret_file, and not both"),
        ('[acme]\nsecret = "canary-secret-5c1e"', "Never put a secret itself into this file"),
        (
            '[acme]\nsecret_env = "canary-secret-5c1e"',
            "[acme] names an environment variable in secret_env that is not set",
        ),
        (
            '[acme]\nsecret_env = "A"\nregion = "ca"',
            "the known ones are secret_env, secret_file, auth_scheme, base_url",
        ),
        ("[acme]\nsecret_env = 7", "[acme] must have a text as secret_env"),
        (
            '[acme]\nsecret_env = "A"\nauth_scheme = "canary-secret-5c1e"',
            "must have one of these as auth_scheme: flinks-auth-key",
        ),
        ('[acme]\nsecret_file = "none.secret"', "secret_file of [acme] cannot be read: No such file"),
        ('[acme]\nsecret_env = "FLINKS_TEST_SECRET"\nbase_url = "http://far"', "[acme]: base_url is http:// to far"),
    ],
)
async def test_a_file_of_instances_that_is_wrong_says_where_and_never_the_secret(
    tokens: Path, tmp_path: Path, text: str, says: str
) -> None:
    instances = write(tmp_path / "wrong.toml", text)
    args = ("fetch", tokens, "--job", tmp_path / "job", "--column", "token", "--instance-column", "place")
    result = await cli(*args, "--instances", instances, FLINKS_TEST_SECRET="x")
    assert result.exit_code == Exit.USAGE
    assert says in result.stderr
    assert SECRET not in result.output
    assert not (tmp_path / "job").exists()


async def test_the_options_of_one_instance_do_not_go_with_a_file_of_many(tokens: Path, instances: Path) -> None:
    args = ("fetch", tokens, "--job", "job", "--column", "token", "--instance-column", "place")
    result = await cli(*args, "--instances", instances, "--instance", "acme")
    assert result.exit_code == Exit.USAGE
    assert "--instance, --base-url and --secret-file do not go with --instances" in result.stderr
