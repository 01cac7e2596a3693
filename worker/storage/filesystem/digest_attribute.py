"""Keep an object's SHA-256 in an extended attribute of its file, in place of a sidecar.

The attribute also has the modification time of the file. A program that writes into the file and knows nothing of the
attribute changes that time, and the attribute no longer counts: the program may have written a sidecar. The value is
binary, so that it fits into the inodes of ext4 and needs no block.
"""

import errno
import os
import struct

NAME = "user.zot.sha256"
_VALUE = struct.Struct(">32sq")
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS, errno.ENOSPC, errno.E2BIG}
_NONE = {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ERANGE}
"""The error numbers by which disks answer for a file without the attribute, or without any; others are faults."""


def write_digest(fd: int, sha256: str) -> bool:
    """Set the digest of an open file, 64 hex digits; return False if its disk has no room for attributes."""
    if not hasattr(os, "setxattr"):
        return False
    try:
        os.setxattr(fd, NAME, _VALUE.pack(bytes.fromhex(sha256), os.fstat(fd).st_mtime_ns))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def has_digest(fd: int) -> bool:
    """Return whether an open file may have a digest in an attribute; faster than to fail to read it."""
    try:
        return NAME in os.listxattr(fd)
    except AttributeError:
        return False
    except OSError:  # some disks list nothing, and yet answer for a name
        return True


def read_digest(fd: int, found: os.stat_result) -> str | None:
    """Return the digest that an open file has, or None if it has none or was changed since.

    Raises:
        OSError: the disk cannot say it. An older sidecar must not count in the place of the attribute then.
    """
    if not hasattr(os, "getxattr"):
        return None
    try:
        value = os.getxattr(fd, NAME)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise
    if len(value) != _VALUE.size:
        return None
    digest, mtime_ns = _VALUE.unpack(value)
    return digest.hex() if mtime_ns == found.st_mtime_ns else None
