"""Keep the named companions in the stores, so that a rebuild of the catalogue restores them."""

import tempfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from worker.artifacts.rebuild.kept_list_files import fetch_lists, keep_list
from worker.catalogue import Catalogue, NamedCompanion
from worker.limits.limited_store import AnyStore
from worker.storage import Store

_NAME = "companions"
_AT_ONCE = 500


def keep_companions(store: Store, catalogue: Catalogue, spool_dir: Path) -> bool:
    """Write the list of named companions to a store, if it keeps another list; return whether it was written.

    Raises:
        StorageError: the store cannot be reached, or does not allow it.
    """
    return keep_list(store, _NAME, catalogue.identity, catalogue.companions, spool_dir)


def restore_companions(catalogue: Catalogue, stores: Iterable[AnyStore], spool_dir: Path) -> int:
    """Record what the stores keep about artifacts that the catalogue has, and return how many rows were new.

    Of two rows about the same artifact, the later one counts, whichever catalogue wrote it.
    """
    count = 0
    with tempfile.TemporaryDirectory(dir=spool_dir, prefix="zot-companions-") as directory:
        for each in fetch_lists(stores, _NAME, Path(directory), _companion).values():
            rows = map(_companion, each.rows())
            while some := list(islice(rows, _AT_ONCE)):
                count += catalogue.companions.restore(some)
    return count


def _companion(row: Mapping[str, Any]) -> NamedCompanion:
    return NamedCompanion(**{**row, "named_at": datetime.fromisoformat(row["named_at"])})
