"""A job's directory must be on a disk of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from flinks_async import ConfigError
from flinks_async.bulk import InputFile, Job, JSONLParts, directory
from flinks_async.bulk.directory import file_system_of, refuse_network

MOUNTS = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:40 / /data rw,relatime shared:2 - nfs4 server:/export rw,vers=4.2
31 30 8:2 / /data/local rw shared:3 - xfs /dev/sdb1 rw
32 21 0:41 / /my\\040share rw master:4 - cifs //server/share rw
33 21 8:3 / /twice rw - ext4 /dev/sdc1 rw
34 33 0:42 / /twice rw - fuse.sshfs me@host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/home/me/job", "ext4"),
        ("/data", "nfs4"),
        ("/data/jobs/1", "nfs4"),
        ("/database/jobs", "ext4"),
        ("/data/local/job", "xfs"),
        ("/my share/job", "cifs"),
        ("/twice/job", "fuse.sshfs"),
    ],
)
def test_the_innermost_mount_counts(path: str, kind: str) -> None:
    assert file_system_of(path, MOUNTS) == kind


def test_a_job_on_a_network_file_system_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:2 / {tmp_path}/far rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(directory, "_MOUNTS", mounts)
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("one\n")
    with pytest.raises(ConfigError, match=r"network file system \(nfs4\)"):
        Job.start(tmp_path / "far" / "job", InputFile(tokens), JSONLParts(), {"": "i"})
    assert not (tmp_path / "far").exists()
    with Job.start(tmp_path / "near", InputFile(tokens), JSONLParts(), {"": "i"}):
        pass


def test_where_the_system_does_not_tell_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:2 / {tmp_path} rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(directory, "_MOUNTS", mounts)
    with pytest.raises(ConfigError):
        refuse_network(tmp_path)
    mounts.unlink()
    refuse_network(tmp_path)
