"""A sweep over an OCI image layout finds every fault that it can have, and nothing in one that is right."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.artifacts.verify_layouts.conftest import Laid
from worker.artifacts.verify_layouts.checked_prefix import NoLayout
from worker.artifacts.verify_layouts.oci import verify_oci

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


def descriptor(content: bytes, media_type: str, algorithm: str = "sha256", **more: Any) -> dict[str, Any]:
    digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(content), **more}


class Repository:
    """An image layout like the example of the image specification: an index, two images, their layers, a signature."""

    def __init__(self, laid: Laid, name: str = "") -> None:
        self.laid = laid
        self.at = f"{name}/" if name else ""
        self.layer = self.blob(b"layer bytes", LAYER)
        self.big = self.blob(b"layer by sha512", LAYER, "sha512")
        self.config = self.blob(b'{"architecture":"ppc64le"}', CONFIG)
        self.image = self.manifest(config=self.config, layers=[self.layer, self.big])
        self.other = self.manifest(config=self.config, layers=[self.layer])
        self.nested = self.document(INDEX, manifests=[self.other])
        self.signature = self.manifest(config=self.config, layers=[], subject=self.image)
        self.write_index([self.image, self.nested, self.signature])
        laid.lay({f"{self.at}oci-layout": b'{"imageLayoutVersion": "1.0.0"}'})

    def blob(self, data: bytes, media_type: str, algorithm: str = "sha256") -> dict[str, Any]:
        made = descriptor(data, media_type, algorithm)
        self.laid.lay({self.path(made): data})
        return made

    def document(self, media_type: str, **fields: Any) -> dict[str, Any]:
        return self.blob(json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode(), media_type)

    def manifest(self, **fields: Any) -> dict[str, Any]:
        return self.document(MANIFEST, **fields)

    def path(self, of: dict[str, Any]) -> str:
        return f"{self.at}blobs/{of['digest'].replace(':', '/')}"

    def write_index(self, manifests: list[dict[str, Any]]) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
        self.laid.lay({f"{self.at}index.json": json.dumps(index).encode()})


@pytest.fixture
def repository(laid: Laid) -> Repository:
    return Repository(laid)


def test_a_right_layout_has_no_faults_and_every_blob_is_read(laid: Laid, repository: Repository) -> None:
    """Every blob is read in full, by sha256 and sha512; also in repositories below each other."""
    assert laid.find(verify_oci) == set()
    assert (laid.place.tally.layouts, laid.place.tally.objects) == (1, 7)
    Repository(laid, "team/app")
    Repository(laid, "team")
    assert laid.find(verify_oci, "team") == set()
    assert laid.place.tally.layouts == 2
    assert laid.find(verify_oci) == set()
    assert repository.at == ""


@pytest.mark.parametrize("which", ["layer", "big", "config", "image", "nested"])
def test_a_flipped_bit_is_found_in_every_kind_of_blob(laid: Laid, repository: Repository, which: str) -> None:
    """Its bytes are not those of its name; nothing is called unreferenced because a manifest cannot be believed."""
    path = repository.path(getattr(repository, which))
    laid.flip(path)
    assert laid.find(verify_oci) == {("corrupt", path)}


@pytest.mark.parametrize("which", ["layer", "big", "config", "image", "other", "nested"])
def test_a_blob_that_is_gone_is_missing(laid: Laid, repository: Repository, which: str) -> None:
    """Whatever names it: the index, a nested index, a manifest, a subject."""
    path = repository.path(getattr(repository, which))
    laid.remove(path)
    assert laid.find(verify_oci) == {("missing", path)}


def test_a_missing_subject_is_found(laid: Laid, repository: Repository) -> None:
    """A signature whose image is in no index and gone is a finding."""
    repository.write_index([repository.nested, repository.signature])
    laid.remove(repository.path(repository.image))
    assert laid.find(verify_oci) == {("missing", repository.path(repository.image))}


def test_a_blob_that_nothing_names_is_unreferenced(laid: Laid, repository: Repository) -> None:
    """It is also read, so that it can be both unreferenced and corrupt."""
    loose = repository.path(repository.blob(b"loose", LAYER))
    assert laid.find(verify_oci) == {("unreferenced", loose)}
    laid.flip(loose)
    assert laid.find(verify_oci) == {("unreferenced", loose), ("corrupt", loose)}


def test_a_size_that_differs_is_found(laid: Laid, repository: Repository) -> None:
    """A descriptor with the right digest and a wrong size is a finding."""
    wrong = repository.manifest(config=repository.config, layers=[{**repository.layer, "size": 3}])
    repository.write_index([wrong, repository.image, repository.nested, repository.signature])
    found = laid.find(verify_oci)
    assert found == {("size_mismatch", repository.path(repository.layer))}


@pytest.mark.parametrize("name", ["sha256/" + "A" * 64, "sha256/abc", "sha256/" + "0" * 63 + ".tmp", "crc/01"])
def test_a_blob_whose_name_is_no_digest_is_invalid(laid: Laid, repository: Repository, name: str) -> None:
    """Upper case, too short, the rest of an interrupted copy, an algorithm that does not exist."""
    laid.lay({f"blobs/{name}": b"x"})
    assert laid.find(verify_oci) == {("invalid", f"blobs/{name}")}
    assert repository.at == ""


def test_a_digest_by_an_unknown_algorithm_is_not_verifiable(laid: Laid, repository: Repository) -> None:
    """It is told, and never counted as read."""
    name = f"blobs/blake9/{'0' * 64}"
    laid.lay({name: b"x"})
    assert laid.find(verify_oci) == {("unverifiable", name), ("unreferenced", name)}
    assert laid.place.tally.objects == 7
    assert repository.at == ""


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        (b"{", "invalid"),
        (b"[]", "invalid"),
        (b"\xff", "invalid"),
        (b'{"manifests": [7]}', "invalid"),
        (b'{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}', "invalid"),
        (b'{"manifests": [{"digest": "sha256:' + b"0" * 64 + b'", "size": -1}]}', "invalid"),
        (b"[" * 100_000, "invalid"),
        (b'{"manifests": [], "schemaVersion": 2, "schemaVersion": 2}', "invalid"),
        (None, "missing"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_fault(
    laid: Laid, repository: Repository, index: bytes | None, kind: str
) -> None:
    """Broken JSON, JSON bombs, path escapes, absence: one finding; every blob is read, none is called unreferenced."""
    laid.remove("index.json")
    if index is not None:
        laid.lay({"index.json": index})
    assert laid.find(verify_oci) == {(kind, "index.json")}
    assert laid.place.tally.objects == 7
    assert repository.at == ""


def test_cycles_and_repetitions_end(laid: Laid, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that names itself, which only a broken digest function allows, is followed once."""
    me = repository.blob(b"me", INDEX)
    again = {"manifests": [me, me, repository.image]}
    monkeypatch.setattr("worker.artifacts.verify_layouts.oci._Sweep._manifest", _always(again))
    repository.write_index([me, me, me])
    assert ("missing", repository.path(me)) not in laid.find(verify_oci)


def _always(document: dict[str, Any]) -> Callable[..., Any]:
    from worker.artifacts.verify_layouts.oci import _named_in

    return lambda *_: _named_in(document)


def test_a_manifest_larger_than_registries_take_is_not_read_into_memory(laid: Laid, repository: Repository) -> None:
    """It is invalid as a manifest, and its bytes are still compared as those of a blob."""
    huge = repository.blob(b" " * (4 << 20) + b"{}", MANIFEST)
    repository.write_index([huge, repository.image, repository.nested, repository.signature])
    assert laid.find(verify_oci) == {("invalid", repository.path(huge))}
    laid.flip(repository.path(huge))
    assert ("corrupt", repository.path(huge)) in laid.find(verify_oci)


def test_what_need_not_be_there_is_no_fault(laid: Laid, repository: Repository) -> None:
    """Layers that are not distributed, and content that is inside its descriptor."""
    foreign = descriptor(
        b"foreign", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["https://x.test"]
    )
    inside = descriptor(b"{}", "application/vnd.oci.empty.v1+json", data="e30=")
    made = repository.manifest(config=inside, layers=[foreign, repository.layer])
    repository.write_index([made, repository.image, repository.nested, repository.signature])
    assert laid.find(verify_oci) == set()


def test_an_empty_object_in_place_of_a_shared_blob_is_right(laid: Laid) -> None:
    """As zot keeps shared blobs in object stores; without an original it is corrupt."""
    one, two = Repository(laid, "one"), Repository(laid, "two")
    laid.lay({two.path(two.layer): b""})
    assert laid.find(verify_oci) == set()
    laid.lay({one.path(one.layer): b""})
    assert laid.find(verify_oci) == {
        ("size_mismatch", one.path(one.layer)), ("size_mismatch", two.path(two.layer)),
        ("corrupt", one.path(one.layer)), ("corrupt", two.path(two.layer)),
    }  # fmt: skip


def test_the_shared_blobs_of_zot_are_referenced_from_repositories(laid: Laid) -> None:
    """A blob in `_blobstore` is unreferenced only if no repository names it."""
    one = Repository(laid, "one")
    laid.lay({"_blobstore/" + one.path(one.layer).removeprefix("one/"): b"layer bytes"})
    assert laid.find(verify_oci) == set()
    loose = f"_blobstore/blobs/sha256/{hashlib.sha256(b'loose').hexdigest()}"
    laid.lay({loose: b"loose"})
    assert laid.find(verify_oci) == {("unreferenced", loose)}


def test_a_dry_run_reads_manifests_and_no_layers(laid: Laid, repository: Repository) -> None:
    """What is gone is found, what is rotten in a layer is not, and in a manifest it is."""
    laid.flip(repository.path(repository.layer))
    assert laid.find(verify_oci, dry_run=True) == set()
    assert laid.place.tally.objects == 7
    laid.remove(repository.path(repository.big))
    laid.flip(repository.path(repository.other))
    assert laid.find(verify_oci, dry_run=True) == {
        ("missing", repository.path(repository.big)), ("corrupt", repository.path(repository.other)),
    }  # fmt: skip


def test_a_prefix_without_a_layout_is_an_error(laid: Laid, repository: Repository) -> None:
    """So that a mistyped prefix is never reported as clean."""
    laid.lay({"elsewhere/file": b"x"})
    with pytest.raises(NoLayout, match="elsewhere"):
        laid.find(verify_oci, "elsewhere")
    with pytest.raises(NoLayout):
        laid.find(verify_oci, "nowhere")
    assert repository.at == ""
