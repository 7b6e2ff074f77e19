"""Which file system a folder is on. A ledger needs one of this machine: over a network, locks and syncs may be a show."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from ..errors import ConfigError

_MOUNTS: Final = Path("/proc/self/mountinfo")
_OF_A_NETWORK: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "glusterfs", "lustre", "gpfs", "beegfs",
        "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.ceph-fuse",
    }
)  # fmt: skip


def refuse_network(folder: Path) -> None:
    """Refuses a folder of another machine. Where the system does not tell (other than Linux), nothing is refused.

    Raises:
        ConfigError: it is on a network file system.
    """
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = file_system_of(os.path.realpath(folder), mounts)
    if kind in _OF_A_NETWORK:
        raise ConfigError(
            f"{folder} is on a network file system ({kind}), where the lock and the ledger of a job are not safe. "
            "Take a directory on a disk of this machine; answers may go to a database, or be copied when the job is done"
        )


def file_system_of(path: str, mounts: str) -> str:
    """The type of the file system that an absolute path is on.

    Args:
        mounts: as in /proc/self/mountinfo (proc(5)): the fifth field of a line is where it is mounted, and the first one
            after the dash its type.
    """
    best, found = "", ""
    for line in mounts.splitlines():
        where, _, what = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two in the same place, the later one covers the other
            best, found = point, what.split(" ")[0]
    return found
