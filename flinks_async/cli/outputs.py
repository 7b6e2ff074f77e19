"""The files of a run of `fetch`: answers, failed tokens, skipped lines."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from .output import LineFile, StderrLines, Stdout
from .secret_input import STDIN
from .usage import UsageError


@frozen
class Outputs:
    """Where lines go: the answers, the failed tokens, the skipped lines."""

    out: LineFile | Stdout
    failed: LineFile | StderrLines
    skipped: LineFile | StderrLines

    def files(self) -> list[LineFile]:
        return [output for output in (self.out, self.failed, self.skipped) if isinstance(output, LineFile)]

    def open(self) -> None:
        """Checks all of them and opens the first, before anything is sent."""
        for file in self.files():
            file.check()
        if isinstance(self.out, LineFile):
            self.out.open()

    def finish(self) -> None:
        """Gives every file its name; the answers come last, so that their file means that the run is over."""
        for file in reversed(self.files()):
            file.finish()

    def abandon(self) -> list[Path]:
        """Leaves the parts; those that hold lines."""
        if isinstance(self.out, Stdout):
            self.out.close()
        return [part for file in self.files() if (part := file.abandon()) is not None]


def make_outputs(out: str, failed: str | None, skipped: str | None, tokens: str, *, force: bool) -> Outputs:
    """The outputs of these names, '-' for standard output; without a name, beside the answers.

    Raises:
        Wrong: two of them, or the file of tokens and one of them, are the same file.
    """

    def beside(given: str | None, kind: str) -> LineFile | StderrLines:
        if given is not None:
            return LineFile(Path(given), force=force)
        return StderrLines() if out == STDIN else LineFile(_beside(Path(out), kind), force=force)

    outputs = Outputs(
        Stdout() if out == STDIN else LineFile(Path(out), force=force),
        beside(failed, "failed"),
        beside(skipped, "skipped"),
    )
    files = outputs.files()
    if len({os.path.normcase(os.path.abspath(file.path)) for file in files}) < len(files):
        raise UsageError("--out, --failed and --skipped must be different files.")
    if any(_same_file(tokens, path) for file in files for path in (file.path, file.part)):
        raise UsageError("The file of tokens cannot be an output file too.")
    return outputs


def _beside(out: Path, kind: str) -> Path:
    """`answers.jsonl` -> `answers.failed.jsonl`."""
    return out.with_name(f"{out.stem if out.suffix == '.jsonl' else out.name}.{kind}.jsonl")


def _same_file(tokens: str, path: Path) -> bool:
    try:
        return tokens != STDIN and os.path.samefile(tokens, path)
    except (OSError, ValueError):  # one of them does not exist
        return False
