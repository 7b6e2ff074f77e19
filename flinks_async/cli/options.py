"""Options that several commands share. A command gets each group of them as one record."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from typing import Any, Final, Literal, TypeVar, get_args

import click
from attrs import frozen

from .. import config
from ..bulk import DaskExecutor, Executor, InProcess, Layout, Processes, RayExecutor, Rules
from ..bulk.executors.cluster import ClusterExecutor, ClusterOptions
from ..bulk.inputs import STDIN, Format
from ..checks import is_url
from ..config import Settings
from ..errors import ConfigError
from .console import UsageError

OUTPUTS: Final = ("--out", "--job", "--dir")

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(ctx: click.Context, param: click.Parameter, given: str | None) -> float | None:
    """Callback of an option: `90`, `90s`, `45m`, `2h` or `1d` in seconds."""
    if given is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", given)
    if found is None or not float(found[1]):
        raise UsageError(f"{param.opts[0]} must be a time such as 90 (seconds), 45m, 2h or 1d.")
    return float(found[1]) * _SECONDS[found[2]]


def failures(ctx: click.Context, param: click.Parameter, given: str | None) -> tuple[int | None, float | None]:
    """Callback of an option: `100` or `5%` as (number, share), of which one or both are None."""
    if given is None:
        return None, None
    if re.fullmatch(r"\d+", given):
        return int(given), None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%", given)
    if found is None or not 0 < float(found[1]) <= 100:
        raise UsageError(f"{param.opts[0]} must be a number such as 100, or a share such as 5%.")
    return None, float(found[1]) / 100


def path_name(ctx: click.Context, param: click.Parameter, given: str | None, *, must_exist: bool = False) -> str | None:
    """Callback of the name of a file or directory, or '-': refuses names that cannot exist, and standard input for two inputs.
    No message repeats the name, because it may be a secret in the wrong place.
    """
    what = param.metavar if isinstance(param, click.Argument) else param.opts[0]
    if given == "":
        raise UsageError(f"{what} must not be empty.")
    try:
        if given is not None:
            os.stat(given)
    except (FileNotFoundError, NotADirectoryError):
        if must_exist and is_url(given):
            raise UsageError(f"{what} must be on a disk: copy the job's directory to this machine.") from None
        if must_exist:
            raise UsageError(f"{what}: there is nothing with this name (the value is not shown).") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else "it is not a name for a file"
        raise UsageError(f"{what} cannot be used: {reason} (the value is not shown).") from None
    if given == STDIN and what not in OUTPUTS and (other := ctx.meta.setdefault(__name__, what)) != what:
        raise UsageError(f"{other} and {what} cannot both be '-', because standard input can be read only once.")
    return given


F = TypeVar("F", bound=Callable[..., Any])


def whole(*names: str, most: int | None = None, **more: Any) -> Callable[[F], F]:
    """An option for a whole number from 1."""
    return click.option(*names, type=click.IntRange(1, most), metavar="N", **more)


def positive(name: str, metavar: str = "N", **more: Any) -> Callable[[F], F]:
    """An option for a number greater than 0."""
    return click.option(name, type=click.FloatRange(min=0, min_open=True), metavar=metavar, **more)


def file_name(*names: str, metavar: str = "FILE", **more: Any) -> Callable[[F], F]:
    """An option for the name of a file or directory, or '-'."""
    return click.option(*names, metavar=metavar, callback=path_name, **more)


def grouped(name: str, make: Callable[..., Any], *options: Callable[[Any], Any]) -> Callable[[F], F]:
    """A decorator that adds options to a command.

    Args:
        name: of the argument that the command gets their values as.
        make: makes that argument of them; its parameters have the names of the options.
    """
    names = list(signature(make).parameters)

    def decorate(command: F) -> F:
        @wraps(command)
        def with_group(**arguments: Any) -> Any:
            values = {option: arguments.pop(option) for option in names}
            return command(**{name: make(**values)}, **arguments)

        decorated: Any = with_group
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


timeout_option = positive("--timeout", "SECONDS", help="Limit for one token, with all attempts and waits.")

concurrency_option = whole(
    "--concurrency", most=1000, help="Fixed number of requests in flight [adaptive, as in the bulk preset]."
)


def bulk_settings(
    concurrency: int | None = None,
    rate: float | None = None,
    attempts: int | None = None,
    timeout: float | None = None,
) -> Settings:
    """The bulk preset with the options that were given."""
    given: dict[str, dict[str, float | None]] = {
        "limits": {"concurrency": concurrency, "rate": rate},
        "retry": {"attempts": attempts},
        "timeouts": {"deadline": timeout},
    }
    changes = {
        record: {field: value for field, value in values.items() if value is not None}
        for record, values in given.items()
    }
    return config.choose(config.bulk(), changes)


settings_options = grouped(
    "settings",
    bulk_settings,
    concurrency_option,
    positive("--rate", help="Maximum requests per second [no limit]."),
    whole("--attempts", most=100, help="Attempts per token [6]."),
    timeout_option,
)


def _rules(
    open_shards: int,
    max_failures: tuple[int | None, float | None],
    max_duration: float | None,
    refused_after: int,
    unreachable_after: float | None,
    drain: float,
) -> Rules:
    count, share = max_failures
    return Rules(
        open_shards=open_shards,
        refused_after=refused_after,
        max_failures=count,
        max_failure_share=share,
        max_duration=max_duration,
        unreachable_after=unreachable_after or Rules().unreachable_after,
        drain=drain,
    )


stop_options = grouped(
    "rules",
    _rules,
    whole(
        "--open-shards",
        most=10_000,
        default=Rules().open_shards,
        help="Shards in progress at once; a kill repeats at most this many times --shard-size tokens.",
    ),
    click.option(
        "--max-failures", callback=failures, metavar="N|P%", help="Stop when more tokens than this have failed."
    ),
    click.option("--max-duration", callback=seconds, metavar="TIME", help="Stop after 90 (seconds), 45m, 2h or 1d."),
    whole(
        "--refused-after",
        default=Rules().refused_after,
        help="Stop when this many tokens in a row get a refusal of the AuthSecret, a redirect or an HTML page.",
    ),
    click.option(
        "--unreachable-after",
        callback=seconds,
        metavar="TIME",
        help="Stop when an instance that has never answered has failed for this time [2m].",
    ),
    click.option(
        "--drain",
        type=click.FloatRange(min=0),
        metavar="SECONDS",
        default=Rules().drain,
        help="Time for tokens in flight to finish when the run stops; the next run fetches the others.",
    ),
)


@frozen
class Workers:
    """Where shards are fetched.

    Attributes:
        processes: number of processes; None if it was not given.
        cluster: address of a cluster; None without one.
        workers: of the cluster.
        insecure: accept a cluster on other machines without TLS or authentication.
        patience: seconds to wait for the cluster, and for a worker.
    """

    processes: int | None
    cluster: str | None
    workers: int | None
    insecure: bool
    patience: float | None

    def __attrs_post_init__(self) -> None:
        if self.processes is not None and self.cluster is not None:
            raise UsageError("--executor does not go with --processes: the machines of a cluster have their workers.")
        if self.address is None and (self.workers or self.insecure or self.patience):
            raise UsageError("--workers, --wait-for-workers and --insecure-cluster need --executor.")

    def for_reading(self) -> Executor | None:
        """The executor that was asked for by an option; None without one. Raises UsageError and ConfigError as `executor`."""
        asked = self.processes is not None or self.cluster is not None
        return (
            self.executor(lambda: {"secret_env": "FLINKS_AUTH_SECRET"}) if asked else None
        )  # which no worker looks for

    @property
    def address(self) -> str | None:
        """Of the cluster, also from the environment."""
        return self.cluster or (None if self.processes else os.environ.get("FLINKS_EXECUTOR", "").strip() or None)

    def executor(self, secrets: Callable[[], ClusterOptions]) -> Executor:
        """The executor.

        Args:
            secrets: says where the workers of a cluster find the AuthSecret.

        Raises:
            UsageError: the address is none. It is not shown, because it may hold a password.
            ConfigError: the cluster is not secure, or its package is not installed.
        """
        if self.address is None:
            return InProcess() if self.processes is None else Processes(self.processes)
        found = re.fullmatch(r"(dask|dask\+tls|ray)://(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", self.address)
        if found is None:
            raise UsageError("--executor must be dask://HOST:PORT, dask+tls://HOST:PORT or ray://HOST:PORT.")
        options = secrets()
        if self.workers is not None:
            options["workers"] = self.workers
        if self.patience is not None:
            options["patience"] = self.patience
        executor: ClusterExecutor
        try:
            if found[1] == "ray":
                executor = RayExecutor(self.address, allow_unauthenticated=self.insecure, **options)
            else:
                scheme = "tls" if found[1] == "dask+tls" else "tcp"
                address = f"{scheme}://{found[2]}:{found[3]}"
                executor = DaskExecutor(address, allow_plaintext=self.insecure, **options)
        except ConfigError as error:
            raise ConfigError(re.sub(r"allow_\w+=True", "--insecure-cluster", error.message)) from None
        executor.import_engine()
        return executor


def _workers_options(processes: str, cluster: str) -> Callable[[F], F]:
    """The options for `Workers`, with the help of the first two."""
    return grouped(
        "workers",
        Workers,
        whole("--processes", most=256, help=processes),
        click.option("--executor", "cluster", metavar="URL", help=cluster),
        whole("--workers", help="Workers of the cluster [those that are free]."),
        click.option(
            "--wait-for-workers",
            "patience",
            callback=seconds,
            metavar="TIME",
            help="Stop when the cluster is not reached, or has had no worker, for this time [5m].",
        ),
        click.option(
            "--insecure-cluster",
            "insecure",
            is_flag=True,
            help="Accept a cluster on other machines without TLS (Dask) or token authentication (Ray).",
        ),
    )


_CLUSTERS: Final = "dask://HOST:PORT, dask+tls://HOST:PORT or ray://HOST:PORT"

workers_options = _workers_options(
    "Worker processes, which share the limits; at most one per processor core [none: this process fetches].",
    f"Fetch on a cluster: {_CLUSTERS} [FLINKS_EXECUTOR]. Its machines find the AuthSecret as this one does, and see TOKENS and "
    "the job at the same paths, unless tokens and answers are in object storage.",
)

reading_options = _workers_options(
    "Worker processes that read JSONL parts or Parquet; at most one per processor core.",
    f"Read JSONL parts or Parquet on a cluster: {_CLUSTERS}. Its machines see the answers at the same path, unless they are in "
    "object storage. They need no AuthSecret.",
)

ProgressKind = Literal["auto", "plain", "json", "none"]


progress_options = grouped(
    "progress",
    lambda progress, quiet: "none" if quiet else progress,
    click.option(
        "--progress",
        type=click.Choice(get_args(ProgressKind)),
        default="auto",
        help="On standard error: a bar on a terminal and lines elsewhere (auto), lines, JSON for programs, or nothing.",
    ),
    click.option("--quiet", is_flag=True, help="Show no progress, only the summary."),
)


def _delimiter(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    if given is None:
        return None
    delimiter = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if delimiter not in (",", ";", "\t", "|"):
        raise UsageError("--delimiter must be one of ',' ';' '|' and 'tab'.")
    return delimiter


layout_options = grouped(
    "layout",
    Layout,
    click.option(
        "--format",
        type=click.Choice(get_args(Format)),
        default="auto",
        help="Format of TOKENS.",
    ),
    click.option("--column", metavar="NAME", help="Column or field with the token."),
    click.option(
        "--key-column", metavar="NAME", help="Column or field that is copied to the output, to identify rows."
    ),
    click.option("--instance-column", metavar="NAME", help="Column or field with the token's instance."),
    click.option(
        "--delimiter",
        metavar="CHAR",
        callback=_delimiter,
        help="Delimiter of CSV: ',' ';' '|' or 'tab' [as in the header row].",
    ),
    click.option("--encoding", metavar="NAME", help="Encoding of TOKENS, such as utf-16 or cp1252 [utf-8]."),
    click.option(
        "--no-header",
        "header",
        flag_value=True,
        is_flag=True,
        callback=lambda ctx, param, given: False if given else None,
        help="The CSV file has no header row: its columns are called 1, 2 and so on.",
    ),
)


directory_argument = click.argument("directory", metavar="DIR", callback=partial(path_name, must_exist=True))
