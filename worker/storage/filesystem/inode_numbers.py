"""Tell whether an inode number says which file it is."""

import os
from functools import cache
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_UNSTEADY = ("fuse", "cifs", "smb3", "9p")
"""File systems, by the beginning of their names, that may give a file another number at each look, rename or mount."""


def inode_of(found: os.stat_result) -> int:
    """Return the inode number of a file, 0 on a file system that may give the same file another one later."""
    return found.st_ino if _are_steady(found.st_dev) else 0


@cache
def _are_steady(device: int) -> bool:
    return not file_system_of(device).startswith(_UNSTEADY)


def file_system_of(device: int) -> str:
    """Return the name of the mounted file system with this device number, such as `fuse.sshfs`; empty if unknown."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for mount in mounts:
        place, _, kind = mount.partition(" - ")
        if place.split(" ")[2:3] == [wanted]:
            return kind.partition(" ")[0]
    return ""
