"""`flinks-async retry`: fetches failed tokens of a job again."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from ..bulk import Executor, InputFile, Job, JobMismatchError, Manifest
from ..bulk.files import MANIFEST
from ..bulk.records import FailureKind
from ..checks import counted
from . import epilog
from .access import Access, Clients, access_options, instances_option, make_clients
from .console import debug_option
from .display import choose_display, reporting_errors
from .job_run import JobRun, OnScan
from .options import (
    Speed,
    Stops,
    Telling,
    directory_argument,
    path_name,
    processes_option,
    progress_options,
    speed_options,
    stop_options,
)
from .output import Command
from .signals import run

_KINDS: Final[dict[str, frozenset[FailureKind]]] = {
    "exhausted": frozenset({"exhausted"}),
    "final": frozenset({"final"}),
    "all": frozenset({"exhausted", "final"}),
}


@click.command(cls=Command, epilog=epilog())
@directory_argument
@click.option(
    "--class",
    "class_",
    type=click.Choice([*_KINDS]),
    default="exhausted",
    show_default=True,
    help="Tokens that may succeed in another run, tokens that were refused permanently, or both.",
)
@click.option("--tokens", metavar="FILE", callback=path_name, help="The job's file of tokens, if it was moved.")
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

    An interrupted retry first resumes with the tokens that it had started with.
    """
    with reporting_errors(telling.kind):
        manifest = Manifest.load(Path(directory) / MANIFEST)
        clients = make_clients(access, speed.settings(), instances, manifest.layout.get("instance_column"))
        _refuse_other_origin(manifest, clients)
    chosen = click.get_current_context().get_parameter_source("class_") is ParameterSource.COMMANDLINE
    display = choose_display(telling.kind)

    def resume(source: InputFile | None, on_scan: OnScan) -> Job:
        job = Job.resume(directory, path=tokens, on_scan=on_scan)
        try:
            if retrying := job.totals.retrying:
                hint = "; --class applies to the next one" if chosen else ""
                display.warn(f"An interrupted retry of {counted(retrying, 'token')} is resumed first{hint}.")
            else:
                display.note(f"Fetching {counted(job.retry(_KINDS[class_]), 'failed token')} again.")
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
            raise JobMismatchError(
                f"The answers{of} came from {before[name]}, and would come from {host} now. Use the same address as before"
            )
