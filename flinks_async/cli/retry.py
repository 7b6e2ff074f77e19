"""`flinks-async retry`: failed tokens of a job, once more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from ..bulk import Executor, Job, JobMismatchError, Manifest
from ..bulk.files import MANIFEST
from ..bulk.records import FailureKind
from .console import debug_option
from .exit_codes import epilog
from .instances import Clients, instances_option, make_clients
from .job_display import choose_job_display, told
from .job_run import JobRun
from .options import (
    Access,
    Speed,
    Stops,
    Telling,
    access_options,
    directory_argument,
    processes_option,
    progress_options,
    speed_options,
    stop_options,
)
from .run import run

_KINDS: Final[dict[str, frozenset[FailureKind]]] = {
    "exhausted": frozenset({"exhausted"}),
    "final": frozenset({"final"}),
    "all": frozenset({"exhausted", "final"}),
}


@click.command(epilog=epilog())
@directory_argument
@click.option(
    "--class",
    "class_",
    type=click.Choice([*_KINDS]),
    default="exhausted",
    show_default=True,
    help="Tokens that another try may get, tokens that were refused for good, or both.",
)
@click.option("--tokens", metavar="FILE", help="The job's file of tokens, if it lies somewhere else now.")
@instances_option
@stop_options
@processes_option
@speed_options
@progress_options
@access_options
@debug_option
def retry(
    directory: str,
    class_: str,
    tokens: str | None,
    instances: str | None,
    stops: Stops,
    executor: Executor,
    speed: Speed,
    telling: Telling,
    access: Access,
) -> int:
    """Fetch failed tokens of the job in DIR again.

    A retry that was interrupted goes on with the tokens that it had begun with.
    """
    with told(telling.kind):
        manifest = Manifest.load(Path(directory) / MANIFEST)
        clients = make_clients(access, speed.settings(), instances, manifest.layout.get("instance_column"))
        _refuse_other_origin(manifest, clients)
    chosen = click.get_current_context().get_parameter_source("class_") is ParameterSource.COMMANDLINE
    display = choose_job_display(telling.kind)

    def resume(on_scan: Callable[[int, int], None]) -> Job:
        job = Job.resume(directory, path=tokens, on_scan=on_scan)
        try:
            if retrying := job.totals.retrying:
                hint = "; --class is for the next one" if chosen else ""
                display.warn(f"An interrupted retry of {retrying:,} tokens goes on first{hint}.")
            else:
                display.note(f"{job.retry(_KINDS[class_]):,} failed tokens are fetched again.")
        except BaseException:
            job.close()
            raise
        return job

    return run(JobRun(resume, clients, stops.rules(), executor, display).go)


def _refuse_other_origin(manifest: Manifest, clients: Clients) -> None:
    before = manifest.origin
    for name, host in clients.origin.items():
        if before.get(name, host) != host:
            of = f" of the instance {name!r}" if name else ""
            raise JobMismatchError(f"the answers{of} came from {before[name]}, and would come from {host} now")
