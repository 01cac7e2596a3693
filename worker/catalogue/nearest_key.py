"""Suggest the key that was meant if a user names one that no artifact has."""

import difflib

from worker.catalogue.artifacts import Artifacts

HINT = "; did you mean "
"""Precedes the nearest key in the message of NotFound. The gateway cuts messages here: see `worker.gateway.jobs`."""


def nearest(artifacts: Artifacts, bucket: str, key: str) -> str:
    """Return `; did you mean …?` with the artifacts below a key, or with the one of the nearest name, else nothing."""
    if artifacts.page(bucket, f"{key.rstrip('/')}/", limit=1):
        below = f"{bucket}/{key.rstrip('/')}/"
        return f"{HINT}the artifacts below {below!r}? `get` takes them with -r, other commands with --all"
    keys = {each.key for each in [*artifacts.page(bucket, key[:3]), *artifacts.page(bucket)]}
    # Keys of one bucket are compared without it, which would make any two alike.
    close = [f"{bucket}/{near}" for near in difflib.get_close_matches(key, keys, n=1)]
    if not close:
        others = {each.path for each in artifacts.page(None) if each.bucket != bucket}
        close = difflib.get_close_matches(f"{bucket}/{key}", others, n=1)
    return f"{HINT}{close[0]!r}?" if close else ""
