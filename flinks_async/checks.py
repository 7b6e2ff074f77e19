"""Checks that raise `ConfigError`: of arguments, of the fields of a record (validators), and of optional packages."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from sys import modules
from types import NoneType
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit
from urllib.request import url2pathname

from attrs import Attribute
from attrs.validators import optional

from .errors import ConfigError

MOST: Final = 1e12
"""The largest number that a setting may be. Timers and caches cannot work with infinity."""

LEAST: Final = 1e-12
"""The smallest value of a setting that must be greater than 0, so that a division by it stays finite."""

MOST_AT_ONCE: Final = 100_000
"""The highest concurrency: each call has a task of some kilobytes, and an address has 65,535 ports."""


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a number between -MOST and MOST, not NaN and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST <= value <= MOST


def integer(name: str, value: object, least: int, most: int = int(MOST)) -> None:
    """Checks that an argument is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:  # a bool is an int, but no number
        raise ConfigError(f"{name} must be a whole number from {least:,} to {most:,}, not {shown(value)}")


def shown(value: object) -> str:
    """A wrong value in a message. Text is only described, because it may be a secret that was passed as the wrong argument."""
    if isinstance(value, (str, bytes)):
        return f"text of {counted(len(value), 'character')}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"  # which Python refuses to convert to a string
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else type(value).__name__


def flag(name: str, value: object) -> None:
    """Checks that an argument is True or False, because a string such as "false" would count as true."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {type(value).__name__}")


def seconds(name: str, value: object) -> None:
    """Checks that an argument is a number of seconds greater than 0."""
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{name} must be a number of seconds greater than 0, up to {MOST:g}, not {shown(value)}")


_URL: Final = r"[A-Za-z][A-Za-z0-9+.-]*://|(s3|gs|az|https?|file):/"


def is_url(value: object) -> bool:
    """Whether a text or path is a URL; a `Path` of a URL has lost one of the slashes."""
    return isinstance(value, (str, Path)) and re.match(_URL, str(value)) is not None


def checked_url(url: str) -> str:
    """A URL without a slash at its end.

    Raises:
        ConfigError: it cannot be used. The message does not repeat it, because it may hold a password.
    """
    if not isinstance(url, str) or not is_url(url):
        raise ConfigError(f"url must be such as {_PLACES}")
    parts_of_url(url)
    return url.rstrip("/")


_PLACES: Final = "s3://bucket/folder, gs://bucket/folder, az://container/folder or file:///mnt/shared/folder"


def parts_of_url(url: str) -> tuple[str, str, str]:
    """Scheme, bucket, and prefix of the names, of a URL such as `s3://bucket/folder`. Raises ConfigError as `checked_url`."""
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if scheme not in ("s3", "gs", "az", "file"):
        raise ConfigError(f"this URL has an unknown scheme. Use {_PLACES}")
    if "@" in bucket or "?" in rest:
        raise ConfigError(
            "a URL must hold no user, password, key or other parameter ('@' or '?'). Object storage takes its credentials "
            "from the environment, from profiles and from roles"
        )
    if scheme == "file":
        if bucket or not prefix:
            raise ConfigError("a file URL names an absolute path, such as file:///mnt/shared/folder")
        return scheme, "", url2pathname(urlsplit(url).path)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise ConfigError(f"this URL names no bucket, or one that cannot exist. Use {_PLACES}")
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ConfigError("a part of this URL is empty, '.' or '..'")
    return scheme, bucket, prefix


def path(name: str, value: object) -> Path:
    """An argument that names a file or folder, which need not exist, as an absolute path.

    Raises:
        ConfigError: nothing can have this name, or it is a URL.
    """
    if is_url(value):
        raise ConfigError(
            f"{name} must be on a disk, not at a URL: files that grow, databases and the ledger need one. At a URL, answers "
            "can be JSONL parts or Parquet, and the file of tokens can be there"
        )
    problem = "the path of a file or folder"
    try:
        os.lstat(found := Path(value).absolute())  # type: ignore[arg-type]
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            return Path(value).absolute()  # type: ignore[arg-type]
        problem += f" ({error.strerror})"
    except (TypeError, ValueError):  # ValueError: a NUL, or a character that no name can have
        pass
    else:
        return found
    raise ConfigError(f"{name} must be {problem}, not {shown(value)}")


def kind(name: str, value: object, *kinds: type) -> None:
    """Checks that an argument is an instance of one of these types or protocols."""
    if isinstance(value, type) or not isinstance(value, kinds):
        names = " or ".join("None" if one is NoneType else one.__name__ for one in kinds)
        found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ConfigError(f"{name} must be {names}, not {found}")


def function_or_none(name: str, value: object) -> None:
    """Checks that an argument can be called, or is None."""
    if value is not None and not callable(value):
        raise ConfigError(f"{name} must be a function or None, not {type(value).__name__}")


def choice(name: str, value: object, names: Sequence[str]) -> None:
    """Checks that an argument is one of some names."""
    if not isinstance(value, str) or value not in names:
        raise ConfigError(f"{name} must be one of {', '.join(names)}, not {shown(value)}")


def counted(count: int, noun: str) -> str:
    """Such as `1 attempt` or `2,000 attempts`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


_UNITS: Final = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def duration(seconds: float) -> str:
    """`85 ms`, `1.25 s`, `45 s`, `3 min 20 s`, `6 h 12 min`, `2 d 3 h`."""
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{max(seconds * 1000, 0.01):.3g} ms"
    if seconds < 9.995:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    for unit, name, part, part_name in _UNITS:
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit} {name} {rest} {part_name}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"


def optional_import(module: str, *, extra: str) -> Any:
    """Imports an optional package. Call it where the package is used, so that others need not install it.

    Args:
        extra: the extra of this package that installs it.

    Raises:
        ConfigError: it cannot be imported. The message names the extra.
    """
    try:
        __import__(module)  # ten times faster than `import_module` for what is loaded; stores call this for each column
        return modules[module]
    except ModuleNotFoundError as error:
        problem = f"{str(error.name or module).partition('.')[0]} is not installed"
    except ImportError:  # such as psycopg without libpq
        problem = f"{module} is installed but cannot be imported"
    raise ConfigError(f"{problem}: pip install 'flinks-async[{extra}]'")


# --- validators -------------------------------------------------------------------------------------------------------

Validator = Callable[[object, "Attribute[Any]", Any], None]


def validator(check: Callable[..., None], *more: object) -> Validator:
    """Makes a validator of one of the checks above. It names the field as users write it, such as `Retry.attempts`; of a
    client's options, the argument.

    Args:
        more: arguments of the check, after the name and the value.
    """

    def validate(instance: object, attribute: Attribute[Any], value: Any) -> None:
        owner = type(instance).__name__
        check(attribute.name if owner == "ClientOptions" else f"{owner}.{attribute.name}", value, *more)

    return validate


def _in_range(name: str, value: Any, problem: str, holds: Callable[[float], bool]) -> None:
    if not is_number(value):
        raise ConfigError(f"{name} must be a number up to {MOST:g}, not {shown(value)}")
    if not holds(value):
        raise ConfigError(f"{name} must be {problem}, not {value!r}")


number = validator(_in_range, "a number", lambda value: True)
positive = validator(_in_range, f"greater than 0 (at least {LEAST:g})", lambda value: value >= LEAST)
not_negative = validator(_in_range, "0 or more", lambda value: value >= 0)
share = validator(_in_range, "greater than 0 and at most 1", lambda value: 0 < value <= 1)
positive_or_none: Validator = optional(positive)
at_once = validator(integer, 1, MOST_AT_ONCE)
count = validator(integer, 1)
whole = validator(integer, 0)


def one_of(*kinds: type) -> Validator:
    """Makes a validator: an instance of one of these types."""
    return validator(kind, *kinds)
