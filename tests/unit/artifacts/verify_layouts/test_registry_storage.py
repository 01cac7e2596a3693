"""A sweep over the storage of Distribution, which Harbor uses, finds rotten blobs and links that do not fit."""

import hashlib
import json
from typing import Any

import pytest

from tests.unit.artifacts.verify_layouts.conftest import Laid
from worker.artifacts.verify_layouts.oci import verify_oci

V2 = "docker/registry/v2"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """One repository with a tagged image, an index of it and an older tag."""

    def __init__(self, laid: Laid) -> None:
        self.laid = laid
        self.layer, self.config = self.blob(b"layer"), self.blob(b"{}")
        for blob in (self.layer, self.config):
            self.link("_layers", blob)
        self.image = self.manifest({"config": of(self.config, b"{}"), "layers": [of(self.layer, b"layer")]})
        self.index = self.manifest({"manifests": [{"digest": self.image, "mediaType": MANIFEST}]})
        self.tag("latest", self.index)

    def blob(self, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.laid.lay({self.path(digest): data})
        return digest

    def manifest(self, document: dict[str, Any]) -> str:
        digest = self.blob(json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, **document}).encode())
        self.link("_manifests/revisions", digest)
        return digest

    def path(self, digest: str) -> str:
        hex_ = digest.removeprefix("sha256:")
        return f"{V2}/blobs/sha256/{hex_[:2]}/{hex_}/data"

    def link(self, kind: str, digest: str, repository: str = "team/app") -> str:
        name = f"{V2}/repositories/{repository}/{kind}/{digest.replace(':', '/')}/link"
        self.laid.lay({name: digest.encode()})
        return name

    def tag(self, name: str, digest: str) -> str:
        path = f"{V2}/repositories/team/app/_manifests/tags/{name}"
        self.link(f"_manifests/tags/{name}/index", digest)
        self.laid.lay({f"{path}/current/link": digest.encode()})
        return f"{path}/current/link"


def of(digest: str, data: bytes) -> dict[str, Any]:
    return {"digest": digest, "size": len(data), "mediaType": "application/octet-stream"}


@pytest.fixture
def registry(laid: Laid) -> Registry:
    return Registry(laid)


def test_a_right_registry_has_no_faults(laid: Laid, registry: Registry) -> None:
    """Blobs are read once, however many repositories link them; the prefix may be inside the layout."""
    registry.link("_layers", registry.layer, "other")
    registry.link("_manifests/revisions", registry.image, "other")
    registry.link("_layers", registry.config, "other")
    assert laid.find(verify_oci) == set()
    assert laid.place.tally.objects == 4
    assert laid.find(verify_oci, V2) == set()


@pytest.mark.parametrize("which", ["layer", "config", "image", "index"])
def test_rot_and_loss_are_found_in_every_kind_of_blob(laid: Laid, registry: Registry, which: str) -> None:
    """A flipped bit is corrupt and an absent blob is missing, and neither is anything else."""
    path = registry.path(getattr(registry, which))
    laid.flip(path)
    assert laid.find(verify_oci) == {("corrupt", path)}
    laid.remove(path)
    assert laid.find(verify_oci) == {("missing", path)}


def test_a_blob_that_no_manifest_names_is_unreferenced(laid: Laid, registry: Registry) -> None:
    """A link in `_layers` alone is no reference: an upload whose manifest never came leaves one."""
    loose = registry.blob(b"loose")
    registry.link("_layers", loose)
    assert laid.find(verify_oci) == {("unreferenced", registry.path(loose))}


@pytest.mark.parametrize(("kind", "which"), [("_layers", "layer"), ("_manifests/revisions", "image")])
def test_a_link_that_is_gone_is_missing(laid: Laid, registry: Registry, kind: str, which: str) -> None:
    """The bytes are there, and a pull still fails, because the repository does not link them."""
    link = registry.link(kind, getattr(registry, which))
    laid.remove(link)
    assert ("missing", link) in laid.find(verify_oci)


def test_a_tag_of_a_manifest_that_is_gone_is_found(laid: Laid, registry: Registry) -> None:
    """A tag names a digest that is no revision of its repository."""
    registry.tag("old", registry.layer)
    revision = f"{V2}/repositories/team/app/_manifests/revisions/{registry.layer.replace(':', '/')}/link"
    assert laid.find(verify_oci) == {("missing", revision)}


@pytest.mark.parametrize("content", [b"", b"sha256:" + b"0" * 64, b"../../secret", b"\xff" * 40, b"x" * 4096])
def test_a_link_with_another_content_is_invalid(laid: Laid, registry: Registry, content: bytes) -> None:
    """A torn or foreign link is told with its key."""
    link = registry.link("_layers", registry.layer)
    laid.lay({link: content})
    assert laid.find(verify_oci) == {("invalid", link)}


def test_a_blob_in_the_wrong_directory_is_invalid(laid: Laid, registry: Registry) -> None:
    """A registry would not find it."""
    hex_ = hashlib.sha256(b"x").hexdigest()
    wrong = f"{V2}/blobs/sha256/{'00' if hex_[:2] != '00' else '11'}/{hex_}/data"
    laid.lay({wrong: b"x"})
    assert laid.find(verify_oci) == {("invalid", wrong)}
    assert registry.laid is laid
