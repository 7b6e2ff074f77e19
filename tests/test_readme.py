"""README.md, docs/ and docstrings: every Python example and command line runs, and the tables agree with the code.

An example runs unchanged, against a simulated Flinks in its own process. A client without a `base_url` gets the simulator's.
`secret`, `other_secret`, `token`, `token_of` and an open client `flinks` are defined. The blocks of one document share their
names; an example in a docstring sees those of its module and of the public modules. A `text` block after a Python block is
the exact output of that block.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from inspect import CO_COROUTINE
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from aiohttp.test_utils import TestClient, TestServer
from click.testing import CliRunner

import flinks_async
from flinks_async import FlinksClient, Kind, bulk, client_options, config, errors, models, testing
from flinks_async._version import __version__
from flinks_async.bulk.stores.parquet import ParquetStore
from flinks_async.classify import classify_response
from flinks_async.cli.app import app
from flinks_async.endpoint import Endpoint
from flinks_async.testing import ServeOptions, ServerProcess
from flinks_async.verdict import Envelope

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SECURITY = ROOT / "SECURITY.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
NEEDED = {"data-frames.md": ("duckdb", "pandas", "polars")}
"""What examples of a document need beside the extra `test`; they are skipped without it."""
TOKEN = "f3f4f5f6-0000-4000-8000-000000000001"


def fences(document: Path) -> list[tuple[int, str, str]]:
    """Every fenced block: the number of its first line, its language, its content."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start()) + 2, block[1], block[2]) for block in found]


def blocks(document: Path, language: str) -> list[tuple[int, str]]:
    return [(line, block) for line, its_language, block in fences(document) if its_language == language]


def outputs(document: Path) -> dict[int, str]:
    """The expected output of the Python block at a line: the `text` block that follows it."""
    pairs = pairwise(fences(document))
    return {line: output for (line, first, _), (_, second, output) in pairs if (first, second) == ("python", "text")}


def is_test(block: str) -> bool:
    return "def test_" in block


def name_of(value: Any) -> str | None:
    return value.name if isinstance(value, Path) else None


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(ServeOptions(size="medium")) as process:
        yield process


@pytest.fixture
def simulated(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> ServerProcess:
    """Every client without an address talks to the simulator."""
    make_endpoint = client_options.make_endpoint

    def make_simulated(*args: Any, **settings: Any) -> Endpoint:
        settings["base_url"] = settings["base_url"] or server.base_url
        return make_endpoint(*args, **settings)

    monkeypatch.setattr(client_options, "make_endpoint", make_simulated)
    monkeypatch.setenv("FLINKS_AUTH_SECRET", server.auth_secret)
    return server


@pytest.fixture(scope="module")
def parquet_job(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of tokens and the Parquet files of a job."""
    folder = tmp_path_factory.mktemp("parquet")
    tokens = folder / "tokens.csv"
    tokens.write_text("token,user\none,u-1\ntwo,u-2\n", encoding="utf-8")

    async def fetch() -> None:
        source = bulk.InputFile(tokens, bulk.Layout(column="token"))
        with bulk.Job.start(folder / "of-parquet", source, ParquetStore(), {"": "simulator"}) as job:
            async with FlinksClient(auth_secret=server.auth_secret, base_url=server.base_url) as flinks:
                await job.run(flinks)

    asyncio.run(fetch())
    (folder / "of-parquet" / "parts").rename(folder / "parts")
    return folder


@pytest.fixture
def folder(tmp_path: Path, parquet_job: Path, simulated: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the blocks run: a copy of `parquet_job`."""
    shutil.copytree(parquet_job, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_blocks_run(
    document: Path, simulated: ServerProcess, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in NEEDED.get(document.name, ()):
        pytest.importorskip(package)
    printed = outputs(document)
    module = ModuleType("document")
    sys.modules["document"] = module  # FastAPI and attrs look up annotations there
    module.__dict__.update(
        secret=simulated.auth_secret, other_secret=simulated.auth_secret, token=TOKEN, token_of=lambda user: TOKEN
    )
    try:
        for line, block in blocks(document, "python"):
            if not is_test(block):
                run("\n" * (line - 1) + block, document, module.__dict__)  # a traceback names the line of the document
                output = capsys.readouterr().out
                assert output == printed.get(line, output), f"line {line} of {document.name}"
                if "app = " in block:
                    asyncio.run(serve(module.__dict__["app"]))
    finally:
        del sys.modules["document"]


def run(source: str, document: Path, names: dict[str, Any]) -> None:
    code = compile(source, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if code.co_flags & CO_COROUTINE:
        asyncio.run(with_client(code, names))
    else:
        exec(code, names)


async def with_client(code: Any, names: dict[str, Any]) -> None:
    async with FlinksClient(auth_secret=names["secret"]) as flinks:
        names["flinks"] = flinks
        await eval(code, names)


async def serve(app: Any) -> None:
    """One request to an application of an example, of FastAPI or aiohttp."""
    if not hasattr(app, "router") or hasattr(app, "cleanup_ctx"):
        async with TestClient(TestServer(app)) as web:
            response = await web.get("/accounts/u1")
            assert (response.status, await response.json()) == (200, {"accounts": 2})
        return
    sent: list[dict[str, Any]] = []
    scope = {"type": "http", "method": "GET", "path": "/balance/u1", "query_string": b"", "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert re.fullmatch(rb'\{("[^"]+":"-?[0-9.]+",?){2}\}', sent[1]["body"])


def test_example_tests_pass(tmp_path: Path) -> None:
    examples = [
        (document.stem, number, block)
        for document in DOCUMENTS
        for number, (_, block) in enumerate(blocks(document, "python"))
        if is_test(block)
    ]
    for stem, number, block in examples:
        (tmp_path / f"test_{stem}_{number}.py".replace("-", "_")).write_text(block, encoding="utf-8")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), f"--rootdir={tmp_path}"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(examples)} passed" in done.stdout


NO_EXAMPLES = ("flinks_async   ", "protocol   ", "FlinksError\n├", "[acme]\n", "job -- rows", "deadline ►")
"""How the indented blocks of docstrings begin that are drawings or files."""


def docstring_examples() -> Iterator[Any]:
    """The examples in docstrings: indented blocks after an empty line, fenced blocks, and whole sessions with `>>>`."""
    package = Path(flinks_async.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(package.parent)}-{getattr(node, 'name', 'module')}"
                for number, example in enumerate(examples_of(ast.get_docstring(node) or "")):
                    yield pytest.param(path, example, id=f"{name}-{number}")


def examples_of(docstring: str) -> list[str]:
    if ">>> " in docstring:
        return [docstring]
    fenced = re.findall(r"^```python\n(.*?)^```$", docstring, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^\S.*\n\n+((?: {4}.*\n|\n)+)", docstring + "\n", re.MULTILINE)
    found = [*fenced, *(textwrap.dedent(block).strip("\n") for block in indented)]
    return [example for example in found if not example.startswith(NO_EXAMPLES)]


def test_examples_are_found_in_docstrings() -> None:
    docstring = "A title::\n\n    one()\n\n    two()\n\nArgs:\n    x: no example\n\n```python\nthree()\n```"
    assert examples_of(docstring) == ["three()\n", "one()\n\ntwo()"]


async def chunks() -> AsyncIterator[bytes]:
    yield b"{}"


@pytest.mark.parametrize(("path", "example"), list(docstring_examples()))
def test_docstring_examples_run(path: Path, example: str, simulated: ServerProcess, folder: Path) -> None:
    public = (flinks_async, config, bulk, testing)
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    names = {
        **{name: value for where in public for name, value in vars(where).items() if not name.startswith("_")},
        **{name: getattr(testing, name) for name in testing.__all__},
        **vars(module),
        **{"secret": simulated.auth_secret, "token": TOKEN, "server": testing.FlinksServer()},
        **{"headers": {}, "limit": 1000, "stream": chunks(), "parts": []},
    }
    if ">>> " in example:
        session = doctest.DocTestParser().get_doctest(example, names, path.name, str(path), 0)
        assert doctest.DocTestRunner().run(session).failed == 0
        return
    run(example, path, names)
    for name in re.findall(r"^def (test_\w+)", example, re.MULTILINE):
        names[name]()


def command_lines(document: Path) -> list[list[str]]:
    """The arguments of each `flinks-async` line, except those that run forever or take a minute."""
    lines = [line for _, block in blocks(document, "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("flinks-async ")]
    return [arguments for _, *arguments in commands if arguments[0] not in {"simulate", "demo"}]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if command_lines(d)], ids=name_of)
def test_command_lines_run(
    document: Path, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token.txt").write_text(TOKEN, encoding="utf-8")
    (tmp_path / "tokens.txt").write_text("a\nb\n", encoding="utf-8")
    header, row = "access_token,user_id,instance\n", "token-{0},u-{0},acme\n"
    (tmp_path / "tokens.csv").write_text(header + row.format(1) + row.format(2), encoding="utf-8")
    (tmp_path / "users.csv").write_text(header + row.format(3), encoding="utf-8")
    secret = f'base_url = "{server.base_url}"\nsecret_env = "FLINKS_AUTH_SECRET"\n'
    (tmp_path / "instances.toml").write_text(f"[acme]\n{secret}", encoding="utf-8")
    environ = {
        "FLINKS_AUTH_SECRET": server.auth_secret,
        "FLINKS_BASE_URL": server.base_url,
        "FLINKS_ACCESS_TOKEN": TOKEN,
        "FLINKS_PSEUDONYM_KEY": "0123456789abcdef" * 4,
    }
    commands = command_lines(document)
    if not any(arguments[0] == "fetch" for arguments in commands):
        commands.insert(0, ["fetch", "tokens.txt", "--job", "jobs/november"])
    for arguments in commands:
        if arguments[0] == "purge":
            arguments.append("--yes")  # there is no terminal to ask on
        done = CliRunner().invoke(app, arguments, env=environ)
        assert done.exit_code == 0, f"{arguments}: {done.stderr}"


def headings_of(document: Path) -> set[str]:
    """As a link names them."""
    found = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", [*DOCUMENTS, SECURITY, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    headings = headings_of(document)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            path, _, heading = target.partition("#")
            assert (document.parent / path).exists(), target
            assert not heading or heading in headings_of(document.parent / path), target


def test_the_changelog_is_news_for_users_of_the_version_at_its_top() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    assert len(versions) == len(re.findall("^## ", text, re.MULTILINE)), (
        "each section has a version, and a date or none"
    )
    assert versions[0][0] == __version__  # the release workflow looks for it
    assert all(date != "unreleased" for _, date in versions[1:])
    first = text.rpartition("\n## ")[2]
    assert not re.search("^### (Fixed|Changed|Removed)", first, re.MULTILINE), "nobody had a version before the first"
    for heading in ("Contents", "Guarantees", "Decisions for you", "Limits"):
        assert f"\n### {heading}\n" in first


def rows(document: Path) -> Iterator[list[str]]:
    """The cells of the rows of every table, without backticks."""
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, (int, float)):
        return f"{value:g}" if value < 1_000_000 else f"{value // config.MIB} MiB"
    if isinstance(value, frozenset):
        return ", ".join(map(str, sorted(value)))
    if attrs.has(type(value)):  # only what is not the default of its class
        usual = {
            a.name: a.default.factory(value) if isinstance(a.default, attrs.Factory) else a.default
            for a in attrs.fields(type(value))
        }
        given = {name: getattr(value, name) for name, default in usual.items() if getattr(value, name) != default}
        return f"{type(value).__name__}({', '.join(f'{name}={shown(v)}' for name, v in given.items())})"
    return repr(value)


def defaults(settings: config.Settings) -> dict[str, str]:
    records = (settings.retry, settings.timeouts, settings.limits, settings.connection)
    return {
        f"{type(record).__name__}.{name}": shown(value)
        for record in records
        for name, value in attrs.asdict(record, recurse=False).items()
    }


def documented_defaults(document: Path) -> dict[str, tuple[str, str]]:
    known = "|".join(a.type.__name__ if isinstance(a.type, type) else a.type for a in attrs.fields(config.Settings))
    return {row[0]: (row[1], row[2]) for row in rows(document) if re.match(rf"({known})\.", row[0])}


SERVICE, BULK = defaults(config.service()), defaults(config.bulk())


def test_settings_have_every_default() -> None:
    """docs/settings.md must say what the code does: correct its tables where this fails."""
    assert documented_defaults(ROOT / "docs" / "settings.md") == {name: (SERVICE[name], BULK[name]) for name in SERVICE}


def test_the_comparison_of_the_presets_has_right_defaults() -> None:
    found = documented_defaults(ROOT / "docs" / "resilience.md")
    assert found == {name: (SERVICE[name], BULK[name]) for name in found}
    assert len(found) >= 4


def test_the_readme_says_what_the_presets_do() -> None:
    service, bulk_ = config.service(), config.bulk()
    text = " ".join(README.read_text(encoding="utf-8").split())
    assert f"makes {service.retry.attempts} attempts within {shown(service.timeouts.deadline)} seconds" in text
    assert f"`config.bulk()` makes {bulk_.retry.attempts} attempts" in text


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_the_readme_links_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in DOCUMENTS[1:] if f"](docs/{page.name})" not in text] == []


def test_the_tests_that_security_names_are_there() -> None:
    named = re.findall(r"`(tests/[^`]+)`", SECURITY.read_text(encoding="utf-8"))
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_models_have_every_field() -> None:
    documented: dict[str, list[tuple[str, str]]] = {}
    section = ""
    for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            section = line[4:].strip("`")
        elif section and line.startswith("| `"):
            name, wire = [cell.strip(" `") for cell in line.split("|")[1:3]]
            documented.setdefault(section, []).append((name, wire))
        elif line.startswith("## "):
            section = ""
    assert documented == {cls.__name__: list(models.wire_fields(cls)) for cls in models.MODELS}


def test_errors_have_every_code_and_status() -> None:
    for first, error, retried, *_ in [row for row in rows(ROOT / "docs" / "errors.md") if len(row) == 3]:
        for word in first.replace("(Retry.throttle_statuses)", "").split(", "):
            if word == word.upper() and not word[0].isdigit():
                verdict = classify_response(400, Envelope(flinks_code=word))
            elif match := re.fullmatch(r"(\d{3})(?:-\d{3})? ?", word):
                verdict = classify_response(int(match[1]))
            else:
                continue
            assert verdict.error is not None
            assert verdict.error.__name__ == error, word
            assert retried.startswith("yes" if verdict.kind in RETRIED else "no"), word


RETRIED = {Kind.TRANSIENT, Kind.THROTTLED}


def test_errors_have_the_tree() -> None:
    assert errors.__doc__
    tree = [line.strip() for line in errors.__doc__.splitlines() if re.search("[├└]|FlinksError$", line)]
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert [line.strip() for line in text.splitlines() if re.search("[├└]|^ *FlinksError$", line)] == tree


def test_the_readme_names_every_error_or_its_base() -> None:
    text = README.read_text(encoding="utf-8")
    public = {getattr(flinks_async, name) for name in flinks_async.__all__ if name.endswith("Error")}
    for error in public - {errors.FlinksError}:
        bases = error.__mro__[: error.__mro__.index(errors.FlinksError)]
        assert any(f"`{base.__name__}`" in text for base in bases), error
