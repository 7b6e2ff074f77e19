"""The tree of errors: what they carry, and that they pickle."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import attrs
import pytest

from flinks_async import errors
from flinks_async.errors import FlinksError

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, FlinksError)]
FIELDS = {
    "status": 503,
    "flinks_code": "RETRY_LATER",
    "server_message": "soon",
    "request_id": "r-1",
    "attempts": 3,
    "elapsed": 1.5,
    "retry_after": 2.0,
    "token_fingerprint": "00ff",
    "host": "toolbox-api.private.fin.ag",
    "call_id": "0f" * 16,
}


@pytest.mark.parametrize("cls", ALL)
def test_every_error_survives_pickling_and_copying_with_all_its_fields(cls: type[FlinksError]) -> None:
    extra = {
        name: value
        for name, value in {"sent": False, "path": "A[0].B", "location_host": "h", "provider_problem": "p"}.items()
        if name in {attribute.name for attribute in attrs.fields(cls)}
    }
    error = cls("words", **FIELDS, **extra)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is cls
        assert other.message == "words"
        assert other.fields() == error.fields() == {"class": cls.__name__, "message": "words", **FIELDS, **extra}
        assert str(other) == str(error)
        assert other.args == error.args


@pytest.mark.parametrize("cls", ALL)
def test_every_error_can_be_made_of_words_alone(cls: type[FlinksError]) -> None:
    error = cls("words")
    assert str(error) == "words"
    assert {name for name, value in error.fields().items() if value is not None} <= {"class", "message", "sent"}


def test_the_text_names_what_is_known() -> None:
    error = errors.ServerError("it failed", status=503, attempts=3)
    assert str(error) == "it failed [status=503 attempts=3]"
    assert repr(error) == "ServerError('it failed', status=503, attempts=3)"


def test_seconds_are_shown_to_the_millisecond() -> None:
    error = errors.ServerError("it failed", elapsed=0.014210000000000001, retry_after=2.0000004)
    assert str(error) == "it failed [elapsed=0.014 retry_after=2.0]"
    assert repr(error) == "ServerError('it failed', elapsed=0.014, retry_after=2.0)"
    assert error.elapsed == 0.014210000000000001


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn: list[tuple[str, str]] = []
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ((?:│   |    )*)(?:├── |└── )?([A-Z]\w+)(?:\s{2,}.*)?$", line)
        if not found:
            continue
        depth = 0 if line.startswith("    Flinks") else len(found[1]) // 4 + 1
        path = [*path[:depth], found[2]]
        if depth:
            drawn.append((path[-2], path[-1]))
    real = [(base.__name__, cls.__name__) for cls in ALL for base in cls.__bases__ if issubclass(base, FlinksError)]
    assert sorted(drawn) == sorted(real)


def test_timeouts_are_not_the_builtin_one_so_that_a_callers_own_stays_apart() -> None:
    assert not [cls for cls in ALL if issubclass(cls, TimeoutError)]
