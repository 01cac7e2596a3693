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
    found = [*artifacts.page(bucket, key[:3]), *artifacts.page(bucket), *artifacts.page(None)]
    # Bucket and key are compared apart: one that is the same would make any two paths alike.
    for near in difflib.get_close_matches(bucket, {each.bucket for each in found}):
        if keys := difflib.get_close_matches(key, {each.key for each in found if each.bucket == near}, n=1):
            return f"{HINT}{f'{near}/{keys[0]}'!r}?"
    return ""
