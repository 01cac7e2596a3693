"""A sweep over an OCFL storage root finds every fault in inventories and content, in all versions."""

import hashlib
import json
from typing import Any

import pytest

from tests.unit.artifacts.verify_layouts.conftest import Laid
from worker.artifacts.verify_layouts.checked_prefix import NoLayout
from worker.artifacts.verify_layouts.ocfl import verify_ocfl

ROOT = "ark%3a1/obj1/"
V1, V2 = {"image.tiff": b"image", "empty.txt": b"", "foo/bar.xml": b"bar"}, {"foo/bar.xml": b"new bar"}


def sha512(data: bytes) -> str:
    return hashlib.sha512(data).hexdigest()


def inventory(count: int = 2, /, **more: Any) -> dict[str, Any]:
    """Return the inventory of an object of two versions, like the example of the specification."""
    manifest = {sha512(data): [f"v1/content/{name}"] for name, data in V1.items()}
    states = [{sha512(data): [name] for name, data in V1.items()}]
    if count == 2:
        manifest |= {sha512(data): [f"v2/content/{name}"] for name, data in V2.items()}
        states.append({sha512(data): [name] for name, data in (V1 | V2).items()} | {sha512(b""): ["empty.txt", "two"]})
    document = {
        "id": "ark:1/obj1", "type": "https://ocfl.io/1.1/spec/#inventory", "digestAlgorithm": "sha512",
        "head": f"v{count}", "manifest": manifest,
        "versions": {
            f"v{number}": {"created": "2026-01-01T00:00:00Z", "message": "", "state": state}
            for number, state in enumerate(states, 1)
        },
        "fixity": {"md5": {hashlib.md5(b"image").hexdigest(): ["v1/content/image.tiff"]}},
    }  # fmt: skip
    return document | more


def with_sidecar(directory: str, document: dict[str, Any] | bytes) -> dict[str, bytes]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    sidecar = f"{sha512(data)}  inventory.json\n".encode()
    return {f"{directory}inventory.json": data, f"{directory}inventory.json.sha512": sidecar}


def stored(**more: Any) -> dict[str, bytes]:
    """Return the files of a storage root with one object."""
    files = {"0=ocfl_1.1": b"ocfl_1.1\n", "ocfl_layout.json": b"{}", "extensions/0002/config.json": b"{}"}
    files |= {f"{ROOT}0=ocfl_object_1.1": b"ocfl_object_1.1\n", f"{ROOT}logs/x.txt": b"free"}
    files |= {f"{ROOT}v1/content/{name}": data for name, data in V1.items()}
    files |= {f"{ROOT}v2/content/{name}": data for name, data in V2.items()}
    return files | put(**more)


def put(**more: Any) -> dict[str, bytes]:
    now = inventory(**more)
    return with_sidecar(ROOT, now) | with_sidecar(f"{ROOT}v2/", now) | with_sidecar(f"{ROOT}v1/", inventory(1))


def test_a_right_storage_root_has_no_faults(laid: Laid) -> None:
    """Also when the prefix is one object; the content of old versions is read too."""
    laid.lay(stored())
    assert laid.find(verify_ocfl) == set()
    assert (laid.place.tally.layouts, laid.place.tally.objects) == (1, 4)
    assert laid.find(verify_ocfl, ROOT) == set()


def test_a_version_of_which_nothing_is_left_is_missing(laid: Laid) -> None:
    """Also one whose content is all in earlier versions: its directory had an inventory, and is lost."""
    third = inventory()
    third["versions"] |= {"v3": third["versions"]["v2"]}
    third["head"] = "v3"
    laid.lay(stored() | with_sidecar(ROOT, third) | with_sidecar(f"{ROOT}v2/", inventory()))
    assert laid.find(verify_ocfl) == {("missing", f"{ROOT}v3/")}


@pytest.mark.parametrize("name", ["v1/content/image.tiff", "v1/content/foo/bar.xml", "v2/content/foo/bar.xml"])
def test_rot_and_loss_of_content_are_found_in_all_versions(laid: Laid, name: str) -> None:
    """A flipped bit is corrupt and an absent file missing."""
    laid.lay(stored())
    laid.flip(ROOT + name)
    assert laid.find(verify_ocfl) == {("corrupt", ROOT + name)}
    laid.remove(ROOT + name)
    assert laid.find(verify_ocfl) == {("missing", ROOT + name)}


@pytest.mark.parametrize("directory", ["", "v1/"])
@pytest.mark.parametrize("what", ["inventory.json", "inventory.json.sha512"])
def test_an_inventory_that_its_sidecar_does_not_match_is_not_believed(laid: Laid, directory: str, what: str) -> None:
    """A damaged inventory or sidecar is corrupt; one without a sidecar or one that is gone is a finding too."""
    laid.lay(stored())
    key, name = f"{ROOT}{directory}inventory.json", f"{ROOT}{directory}{what}"
    data = (laid.root / name).read_bytes()
    laid.lay({name: data.replace(b'"message"', b'"massage"') if what == "inventory.json" else b"0" + data[1:]})
    if data.startswith(b"0"):
        laid.lay({name: b"1" + data[1:]})
    assert laid.find(verify_ocfl) == {("corrupt", key)}
    laid.remove(name)
    if (directory, what) == ("v1/", "inventory.json"):
        assert laid.find(verify_ocfl) == set()  # a version should have an inventory, and need not
    else:
        assert len(laid.find(verify_ocfl)) == 1


def test_the_fixity_block_is_compared(laid: Laid) -> None:
    """A second digest of the same bytes that does not fit is corrupt."""
    laid.lay(stored(fixity={"md5": {"0" * 32: ["v1/content/image.tiff"]}}))
    assert laid.find(verify_ocfl) == {("corrupt", f"{ROOT}v1/content/image.tiff")}
    for digest, faults in ((hashlib.blake2b(b"image").hexdigest(), 0), ("0" * 128, 1)):
        laid.lay(stored(fixity={"blake2b-512": {digest: ["v1/content/image.tiff"]}}))
        assert len(laid.find(verify_ocfl)) == faults


@pytest.mark.parametrize("name", ["v1/content/extra", "v1/other/file", "stray.txt", "v3/content/x"])
def test_a_file_that_no_inventory_names_is_found(laid: Laid, name: str) -> None:
    """In a version, beside its content, in the root of the object, in a version that no inventory has."""
    laid.lay(stored() | {ROOT + name: b"x"})
    assert laid.find(verify_ocfl) == {("unreferenced", ROOT + name)}


def test_files_between_objects_are_found(laid: Laid) -> None:
    """A storage root has objects below it and nothing else, except files of its own in its root."""
    laid.lay(stored() | {"ark%3a1/loose": b"x", "README": b"x"})
    assert laid.find(verify_ocfl) == {("unreferenced", "ark%3a1/loose")}


@pytest.mark.parametrize(
    "more",
    [
        {"digestAlgorithm": "md5"},
        {"head": "v1"},
        {"head": 2},
        {"id": ""},
        {"manifest": []},
        {"manifest": {"zz": ["v1/content/a"]}},
        {"manifest": {"0" * 128: "v1/content/a"}},
        {"versions": {}},
        {"contentDirectory": "../up"},
        {"fixity": {"md5": {"0" * 32: ["v1/content/unknown"]}}},
        {"versions": {"v1": {"state": {}}, "v3": {"state": {}}}, "head": "v3"},
        {"versions": {"v1": {"state": {"0" * 128: ["a"]}}}, "head": "v1"},
        {"versions": {"v1": 7}, "head": "v1"},
    ],
    ids=str,
)
def test_an_inventory_that_breaks_the_format_is_one_fault(laid: Laid, more: dict[str, Any]) -> None:
    """Its object is not verified, and the finding says so."""
    laid.lay(stored(**more))
    assert laid.find(verify_ocfl) == {("invalid", f"{ROOT}inventory.json")}
    assert "not verified" in laid.faults[0].detail


@pytest.mark.parametrize("path", ["../../outside", "/etc/passwd", "v1/content/../../../x", "v1/elsewhere/x"])
def test_a_content_path_that_leaves_the_object_is_never_read(laid: Laid, path: str) -> None:
    """It is a finding, and the rest of the object is verified."""
    now = inventory()
    now["manifest"][sha512(b"image")].append(path)
    laid.lay(stored() | with_sidecar(ROOT, now) | with_sidecar(f"{ROOT}v2/", now))
    kind = "invalid" if "elsewhere" in path else "unsafe"
    assert laid.find(verify_ocfl) == {(kind, f"{ROOT}inventory.json")}
    assert laid.place.tally.objects == 4


def test_an_older_inventory_that_tells_another_history_is_found(laid: Laid) -> None:
    """The states of a version are the same in every inventory that has it."""
    other = inventory(1)
    other["versions"]["v1"]["state"] = {sha512(b"image"): ["renamed"]}
    laid.lay(stored() | with_sidecar(f"{ROOT}v1/", other))
    assert laid.find(verify_ocfl) == {("invalid", f"{ROOT}v1/inventory.json")}
    laid.lay(with_sidecar(f"{ROOT}v1/", inventory(1)) | with_sidecar(f"{ROOT}v2/", inventory(note="changed")))
    assert laid.find(verify_ocfl) == {("invalid", f"{ROOT}v2/inventory.json")}


@pytest.mark.parametrize("name", ["0=ocfl_1.1", f"{ROOT}0=ocfl_object_1.1"])
def test_a_declaration_with_another_content_is_invalid(laid: Laid, name: str) -> None:
    """It is the name of the version and a line end."""
    laid.lay(stored() | {name: b"ocfl"})
    assert laid.find(verify_ocfl) == {("invalid", name)}


def test_a_root_without_a_declaration_is_found(laid: Laid) -> None:
    """And a second declaration is one too many."""
    laid.lay(stored())
    laid.remove("0=ocfl_1.1")
    assert laid.find(verify_ocfl) == {("missing", "0=ocfl_1.1")}
    laid.lay({"0=ocfl_1.0": b"ocfl_1.0\n", "0=ocfl_1.1": b"ocfl_1.1\n"})
    assert laid.find(verify_ocfl) == {("invalid", "0=ocfl_1.1")}


def test_a_prefix_without_an_object_is_an_error(laid: Laid) -> None:
    """So that a mistyped prefix is never reported as clean."""
    laid.lay({"a/b": b""})
    with pytest.raises(NoLayout):
        laid.find(verify_ocfl)
