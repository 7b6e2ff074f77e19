"""Values of options that are more than a number: times, and how many failures are too many."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Final, Literal, TypeVar

import click
from attrs import evolve, fields, frozen

from .. import config
from ..bulk import Executor, InProcess, Processes, Rules
from ..client import FlinksClient
from ..config import AUTH_SCHEMES, Settings
from ..observe import Observer
from ..secret import Secret
from .secret_input import read_secret
from .usage import UsageError

# [flinks_async.cli.options] Options that several commands share. A command gets each group of them as one record.


_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(ctx: click.Context, param: click.Parameter, given: str | None) -> float | None:
    """`90`, `90s`, `45m`, `2h` or `1d` as seconds; the callback of an option."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", given)
    if found is None or not float(found[1]):
        raise UsageError(f"{param.opts[0]} must be a time such as 90 (seconds), 45m, 2h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


def failures(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[int | None, float | None]:
    """`100` or `5%` as (number, share), of which one or both are None; the callback of an option."""
    if given is None:
        return None, None
    if re.fullmatch(r"\d+", given):
        return int(given), None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", given)
    if found is None or not 0 < float(found[1]) <= 100:
        raise UsageError(f"{param.opts[0]} must be a number such as 100, or a share such as 5%.")
    return None, float(found[1]) / 100


F = TypeVar("F", bound=Callable[..., Any])

Decorator = Callable[[F], F]


def grouped(name: str, record: type, *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """A decorator that adds options to a command.

    Args:
        name: of the argument that the command gets them as.
        record: an attrs class with one field for each option.
    """
    names = [field.name for field in fields(record)]

    def decorate(command: F) -> F:
        @wraps(command)
        def with_record(**arguments: Any) -> Any:
            values = {option: arguments.pop(option) for option in names}
            return command(**{name: record(**values)}, **arguments)

        decorated: Any = with_record
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


@frozen
class Access:
    """Where to ask, and with which secret. Values of None come from the environment, else from the preset."""

    instance: str | None = None
    auth_scheme: str | None = None
    base_url: str | None = None
    allow_http: bool = False
    secret_file: str | None = None

    def client(self, settings: Settings, *observers: Observer, secret: Secret | None = None) -> FlinksClient:
        """A client. Without a `secret`, it is read now.

        Raises:
            ConfigError: a setting is wrong. Usage errors as in `read_secret`.
        """
        chosen = config.from_env()
        if self.instance is not None and self.base_url is None:
            chosen.pop("base_url", None)  # an instance that was asked for wins over the environment's address
        named = {"instance": self.instance, "auth_scheme": self.auth_scheme, "base_url": self.base_url}
        chosen |= {name: value for name, value in named.items() if value is not None}
        chosen["auth_secret"] = secret or read_secret(self.secret_file)
        return FlinksClient(**chosen, settings=settings, allow_http=self.allow_http, observers=observers)


access_options = grouped(
    "access",
    Access,
    click.option("--instance", metavar="NAME", help="Flinks instance [FLINKS_INSTANCE, else toolbox]."),
    click.option(
        "--auth-scheme",
        type=click.Choice(AUTH_SCHEMES),
        help="Header that carries the AuthSecret [FLINKS_AUTH_SCHEME, else flinks-auth-key].",
    ),
    click.option("--base-url", metavar="URL", help="Another address than the instance's [FLINKS_BASE_URL]."),
    click.option("--allow-http", is_flag=True, help="Send the secret unencrypted, to an http:// address."),
    click.option(
        "--secret-file",
        metavar="FILE",
        help="File with the AuthSecret, '-' for standard input. Without it: FLINKS_AUTH_SECRET.",
    ),
)

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="For one token, all attempts and waits included.",
)

concurrency_option = click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Requests at once, a fixed number [as the bulk preset].",
)


@frozen
class Speed:
    """The bulk preset, with what was asked for on the command line."""

    concurrency: int | None = None
    rate: float | None = None
    attempts: int | None = None
    timeout: float | None = None

    def settings(self) -> Settings:
        settings = config.bulk()
        limits, retry, timeouts = settings.limits, settings.retry, settings.timeouts
        if self.concurrency is not None:
            limits = evolve(limits, concurrency=self.concurrency)
        if self.rate is not None:
            limits = evolve(limits, rate=self.rate)
        if self.attempts is not None:
            retry = evolve(retry, attempts=self.attempts)
        if self.timeout is not None:
            timeouts = evolve(timeouts, deadline=self.timeout)
        return evolve(settings, limits=limits, retry=retry, timeouts=timeouts)


speed_options = grouped(
    "speed",
    Speed,
    concurrency_option,
    click.option(
        "--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="Requests a second at most [no limit]."
    ),
    click.option("--attempts", type=click.IntRange(1, 100), metavar="N", help="Attempts for each token [6]."),
    timeout_option,
)

refused_after_option = click.option(
    "--refused-after",
    type=click.IntRange(min=1),
    metavar="N",
    default=Rules().refused_after,
    show_default=True,
    help="Stop when so many tokens in a row are answered that the AuthSecret is refused, or with a redirect or a page.",
)


@frozen
class Stops:
    """When a run of a job ends before its end, and how much of it is under way at once."""

    open_shards: int
    max_failures: tuple[int | None, float | None]
    max_duration: float | None
    refused_after: int
    drain: float

    def rules(self) -> Rules:
        count, share = self.max_failures
        return Rules(
            open_shards=self.open_shards,
            refused_after=self.refused_after,
            max_failures=count,
            max_failure_share=share,
            max_duration=self.max_duration,
            drain=self.drain,
        )


stop_options = grouped(
    "stops",
    Stops,
    click.option(
        "--open-shards",
        type=click.IntRange(1, 10_000),
        metavar="N",
        default=Rules().open_shards,
        show_default=True,
        help="Shards of a job under way at once; so many times --shard-size tokens are repeated after a kill.",
    ),
    click.option("--max-failures", callback=failures, metavar="N|P%", help="Stop the job when more tokens failed."),
    click.option(
        "--max-duration", callback=seconds, metavar="TIME", help="Stop the job after 90 (seconds), 45m, 2h, 1d."
    ),
    refused_after_option,
    click.option(
        "--drain",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        default=Rules().drain,
        show_default=True,
        help="For tokens in flight when the job stops; what has not ended then is fetched by the next run.",
    ),
)


def _executor(ctx: click.Context, param: click.Parameter, given: int) -> Executor:
    return InProcess() if given == 1 else Processes(given)


processes_option = click.option(
    "--processes",
    "executor",
    type=click.IntRange(1, 256),
    metavar="N",
    default=1,
    show_default=True,
    callback=_executor,
    help="Processes that fetch for a job, with the limits of one: as many as there are processor cores, if one is busy.",
)

ProgressKind = Literal["auto", "plain", "json", "none"]


@frozen
class Telling:
    """How progress is shown."""

    progress: ProgressKind
    quiet: bool

    @property
    def kind(self) -> ProgressKind:
        return "none" if self.quiet else self.progress


progress_options = grouped(
    "telling",
    Telling,
    click.option(
        "--progress",
        type=click.Choice(["auto", "plain", "json", "none"]),
        default="auto",
        show_default=True,
        help="On standard error: a bar on a terminal and lines elsewhere, lines, JSON for machines (jobs), nothing.",
    ),
    click.option("--quiet", is_flag=True, help="No progress; the summary stays."),
)

directory_argument = click.argument("directory", metavar="DIR")
