"""A store that left the configuration can be forgotten, and no artifact loses its last good copy by it."""

import pytest

from tests.unit.catalogue.test_catalogue import DIGEST
from worker import clock


def copied(catalogue, key, *stores):
    artifact = catalogue.artifacts.record("releases", key, DIGEST, {}, clock.now(), stores=stores).artifact
    for store in stores:
        catalogue.artifacts.finish_copy(artifact, store, tag="1", evidence={}, now=clock.now())
    return artifact


@pytest.fixture
def three(catalogue):
    """Return one artifact in both stores, one only in the old one, and one deleted there."""
    gone = copied(catalogue, "gone", "old", "new")
    catalogue.artifacts.delete_copies([catalogue.artifacts.copies(gone)["old"]])
    return copied(catalogue, "both", "old", "new"), copied(catalogue, "only", "old"), gone


def test_a_store_is_forgotten_but_for_the_last_good_copies(catalogue, three):
    """Copies that are elsewhere too are forgotten; the only good copy is named and kept, in a dry run as well."""
    both, only, _ = three
    assert catalogue.store_records.names() == ["new", "old"]
    for dry_run in (True, False):
        found = catalogue.store_records.forget("old", dry_run=dry_run)
        assert (found.forgotten, found.last, [each.key for each in found.last_examples]) == (1, 1, ["only"])
        states = [catalogue.artifacts.copies(each)["old"].state for each in (both, only)]
        assert states == ["stored" if dry_run else "deleted", "stored"]
    assert catalogue.artifacts.copies(both)["new"].state == "stored"


def test_a_last_good_copy_is_forgotten_only_by_force(catalogue, three):
    """With force the only good copy is forgotten too, and still counted as the last."""
    found = catalogue.store_records.forget("old", dry_run=False, force=True)
    assert (found.forgotten, found.last) == (2, 1)
    assert catalogue.artifacts.copies(three[1])["old"].state == "deleted"
    assert catalogue.store_records.forget("old", dry_run=False).forgotten == 0


def test_the_copy_of_a_deleted_artifact_is_not_the_last(catalogue):
    """An artifact that was deleted needs no copy any more."""
    artifact = copied(catalogue, "deleted", "old")
    catalogue.artifacts.tombstone(artifact, clock.now())
    found = catalogue.store_records.forget("old", dry_run=True)
    assert (found.forgotten, found.last) == (1, 0)
