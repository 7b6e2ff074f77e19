"""Checks that need other tools or other Pythons. `python3 dev.py nox` runs the first five, as .ci/run does.

Sessions for one Python use the environment of nox itself: `.venv`, which dev.py fills. Sessions for other Pythons or
other versions have environments of their own in `.nox`, which uv makes in seconds; `-R` uses them as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

PYPROJECT = nox.project.load_toml("pyproject.toml")
SUPPORTED = nox.project.python_versions(PYPROJECT)
OTHERS = [version for version in SUPPORTED if version != "{}.{}".format(*sys.version_info)]
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
TEST = ["-e", f".[{','.join(EXTRAS)}]", *nox.project.dependency_groups(PYPROJECT, "test")]
PYTHON = sys.executable

nox.needs_version = ">=2025.2"
nox.options.sessions = ["lint", "types", "build", "slow", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")  # only the Pythons of this machine

# The shims of pyenv work only for the selected versions, so its interpreters are added to the PATH.
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *(str(path) for path in sorted(PYENV.glob("*/bin")))])


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """ruff's rules and formatting; `-- --fix` corrects what ruff can correct."""
    fix = "--fix" in session.posargs
    session.run(PYTHON, "-m", "ruff", "check", *(["--fix"] if fix else []), ".")
    session.run(PYTHON, "-m", "ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """mypy --strict and pyright, and pyrefly for users' code; `-- mypy` runs only one of them."""
    tools = session.posargs or ["mypy", "pyright", "pyrefly"]
    if "mypy" in tools:
        session.run(PYTHON, "-m", "mypy")
    if "pyright" in tools:
        session.run(PYTHON, "-m", "pyright", "--pythonpath", PYTHON)
    if "pyrefly" in tools:
        session.run(PYTHON, "-m", "pyrefly", "check", "--python-interpreter-path", PYTHON, "tests/typing_api.py")


@nox.session(venv_backend="none")
def build(session: nox.Session) -> None:
    """The sdist, and a wheel that has the types and nothing but the package."""
    with TemporaryDirectory() as folder:
        session.run(PYTHON, "-m", "build", "--installer", "uv", "--outdir", folder)
        (wheel,), (_sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
        names = zipfile.ZipFile(wheel).namelist()
    foreign = {name.partition("/")[0] for name in names if ".dist-info/" not in name} - {"flinks_async"}
    if foreign or "flinks_async/py.typed" not in names:
        session.error(f"{wheel.name}: py.typed is missing, or there is more than the package: {sorted(foreign)}")


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The documentation site in `.site`; a warning, such as a link that leads nowhere, is an error."""
    session.run(PYTHON, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", ".site", *session.posargs)


@nox.session(venv_backend="none")
def slow(session: nox.Session) -> None:
    """All tests but torture: also those that take seconds, build the documentation, or run `examples` and the tutorials."""
    session.run(PYTHON, "-m", "pytest", "-m", "not torture", *session.posargs)


@nox.session(venv_backend="none")
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the dependencies, as pip resolves them today. It asks a database on the network, and fails if
    one of them is unknown there; `-- --vulnerability-service osv --osv-url URL` names another database.
    """
    requirements = Path(session.create_tmp(), "requirements.txt")
    requirements.write_text(
        "\n".join([*PYPROJECT["project"]["dependencies"], *(r for e in EXTRAS.values() for r in e)])
    )
    session.run(PYTHON, "-m", "pip_audit", "--strict", "--requirement", str(requirements), *session.posargs)


@nox.session(python=SUPPORTED[0])
def wheel(session: nox.Session) -> None:
    """The tests with the built wheel in place of the checkout, whose package they do not see."""
    with TemporaryDirectory() as folder:
        session.run(PYTHON, "-m", "build", "--wheel", "--outdir", folder, external=True)
        (built,) = Path(folder).glob("*.whl")
        session.install(f"{built}[{','.join(EXTRAS)}]", *nox.project.dependency_groups(PYPROJECT, "test"))
        # An environment that is used again holds an older build, with the same version.
        session.install("--force-reinstall", "--no-deps", str(built))
        for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
            copy = shutil.copytree if Path(f".{name}").is_dir() else shutil.copy
            if name != "/flinks_async":
                copy(f".{name}", f"{folder}{name}")
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        installed = Path(str(session.run("python", "-c", where, silent=True)).strip(), "flinks_async")
        Path(folder, "flinks_async").symlink_to(installed)  # for tests that read the files of the package
        session.chdir(folder)
        session.run("pytest", "-m", "not torture and not slow and not once", *session.posargs)


@nox.session(python=OTHERS)
def tests(session: nox.Session) -> None:
    """On the other supported Pythons of this machine, the tests that depend on Python, with a fifth of the generated examples."""
    session.install(*TEST)
    test = ("pytest", "-m", "not torture and not slow and not once and not backend")
    session.run_install(*test, "-n0", "--collect-only", "-qq", silent=True)  # compiles once, and not in each process
    session.run(*test, *session.posargs, env={"FLINKS_EXAMPLES": os.environ.get("FLINKS_EXAMPLES", "0.2")})


@nox.session(python=SUPPORTED[0])
def lowest(session: nox.Session) -> None:
    """The tests with the oldest direct dependencies that pyproject.toml allows."""
    requirements = [*PYPROJECT["project"]["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    oldest = Path(session.create_tmp(), "oldest.txt")
    oldest.write_text("\n".join(re.sub(r"^([\w.-]+).*>=([\d.]+).*", r"\1==\2", r) for r in requirements))
    session.install(*TEST, "--constraint", str(oldest))
    # Old versions meet newer dependencies of theirs, which deprecate what they use.
    deprecated = ("-W", "ignore::DeprecationWarning")
    session.run("pytest", "-m", "not torture and not slow and not once", *deprecated, *session.posargs)


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Line and branch coverage of the tests, subprocesses included, as a table and in `htmlcov`."""
    session.run(PYTHON, "-m", "coverage", "erase")
    session.run(PYTHON, "-m", "coverage", "run", "-m", "pytest", *session.posargs)
    session.run(PYTHON, "-m", "coverage", "combine", "--quiet")
    session.run(PYTHON, "-m", "coverage", "html", "--quiet")
    session.run(PYTHON, "-m", "coverage", "report")


@nox.session(venv_backend="none")
def mutate(session: nox.Session) -> None:
    """Small changes of the deciding code that no test notices; `-- quota` for modules with this in their path."""
    session.run(PYTHON, "-m", "tests.mutation", *session.posargs)
