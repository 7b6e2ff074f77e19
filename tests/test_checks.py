"""Checks: optional packages. Validators are tested with the records that use them, in `test_config`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flinks_async import ConfigError
from flinks_async.checks import optional_import


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which Python imports."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_an_installed_package_is_imported(folder: Path) -> None:
    (folder / "installed_one.py").write_text("x = 7")
    assert optional_import("installed_one", extra="one").x == 7
    del sys.modules["installed_one"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "some_library is not installed"),
        ("import its_dependency.part", "its_dependency is not installed"),
        ("raise ImportError('libone.so is too old')", "some_library is installed but cannot be imported"),
    ],
    ids=["missing", "missing dependency", "broken"],
)
def test_an_error_says_what_is_missing_and_how_to_install_it(folder: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (folder / "some_library.py").write_text(text)
    with pytest.raises(ConfigError) as caught:
        optional_import("some_library", extra="one")
    assert caught.value.message == f"{problem}: pip install 'flinks-async[one]'"
    assert caught.value.__context__ is None
