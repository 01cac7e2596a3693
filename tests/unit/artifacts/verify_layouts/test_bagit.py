"""A sweep over BagIt bags finds every fault that RFC 8493 knows, and nothing in a bag that is right."""

import hashlib

import pytest

from tests.unit.artifacts.verify_layouts.conftest import Laid
from worker.artifacts.verify_layouts.bagit import verify_bagit
from worker.artifacts.verify_layouts.checked_prefix import NoLayout

DECLARATION = b"BagIt-Version: 1.0\nTag-File-Character-Encoding: UTF-8\n"
PAYLOAD = {
    "data/27613-h/images/q172.png": b"png",
    "data/27613-h/images/q172.txt": b"text",
    "data/50% of\r\nall": b"encoded name",
    "data/inner/bagit.txt": b"a bag inside the payload is payload",
    "data/\u00fcber": b"",
}


def lines(files: dict[str, bytes], algorithm: str, mark: str = "  ") -> bytes:
    def escaped(name: str) -> str:
        return name.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return "".join(
        f"{hashlib.new(algorithm, data).hexdigest()}{mark}{escaped(name)}\n" for name, data in files.items()
    ).encode()


def bag(root: str = "", payload: dict[str, bytes] | None = None, declaration: bytes = DECLARATION) -> dict[str, bytes]:
    """Return the files of a bag with two payload manifests and a tag manifest."""
    payload = PAYLOAD if payload is None else payload
    octets = sum(map(len, payload.values()))
    tags = {
        "bagit.txt": declaration,
        "bag-info.txt": f"Source-Organization: x\nPayload-Oxum: {octets}.{len(payload)}\n".encode(),
        "manifest-md5.txt": lines(payload, "md5", " *"),
        "manifest-sha256.txt": lines(payload, "sha256"),
    }
    files = payload | tags | {"tagmanifest-sha512.txt": lines(tags, "sha512", "\t")}
    return {root + name: data for name, data in files.items()}


def test_a_right_bag_has_no_faults(laid: Laid) -> None:
    """Names with line ends and percent signs, an empty file, a bag in the payload, tabs and marks in manifests."""
    laid.lay(bag())
    assert laid.find(verify_bagit) == set()
    assert (laid.place.tally.layouts, laid.place.tally.objects) == (1, 9)


def test_every_bag_below_a_prefix_is_verified(laid: Laid) -> None:
    """An object beside them is in no bag."""
    laid.lay(bag("a/one/") | bag("a/two/") | bag("a/one-more/"))
    assert laid.find(verify_bagit, "a") == set()
    assert laid.place.tally.layouts == 3
    laid.lay({"a/stray": b"x"})
    laid.flip("a/two/data/27613-h/images/q172.png")
    assert laid.find(verify_bagit) == {("unreferenced", "a/stray"), ("corrupt", "a/two/data/27613-h/images/q172.png")}


@pytest.mark.parametrize("name", ["data/27613-h/images/q172.png", "data/50% of\r\nall", "data/inner/bagit.txt"])
def test_rot_loss_and_truncation_of_the_payload_are_found(laid: Laid, name: str) -> None:
    """A flipped bit is corrupt, an absent file missing, and the sum of the payload tells both loss and truncation."""
    laid.lay(bag())
    laid.flip(name)
    assert laid.find(verify_bagit) == {("corrupt", name)}
    laid.lay({name: PAYLOAD[name][:-1]})
    assert laid.find(verify_bagit) == {("corrupt", name), ("size_mismatch", "bag-info.txt")}
    laid.remove(name)
    assert laid.find(verify_bagit) == {("missing", name), ("size_mismatch", "bag-info.txt")}


@pytest.mark.parametrize("name", ["manifest-sha256.txt", "bag-info.txt", "bagit.txt"])
def test_a_tag_file_that_is_damaged_or_gone_is_found(laid: Laid, name: str) -> None:
    """The tag manifest has the digests of the manifests themselves."""
    laid.lay(bag())
    laid.lay({name: bag()[name] + b"\n"})
    assert laid.find(verify_bagit) == {("corrupt", name)}


def test_a_file_that_no_manifest_lists_is_found(laid: Laid) -> None:
    """In the payload; tag files need not be listed."""
    laid.lay(bag() | {"data/extra": b"", "notes/readme.txt": b"a tag file"})
    assert laid.find(verify_bagit) == {("unreferenced", "data/extra"), ("size_mismatch", "bag-info.txt")}


def test_every_manifest_lists_the_whole_payload(laid: Laid) -> None:
    """Since version 1.0; before it a file in one of the manifests is enough."""
    files = bag()
    files["manifest-md5.txt"] = lines({"data/\u00fcber": b""}, "md5")
    del files["tagmanifest-sha512.txt"]
    laid.lay(files)
    assert laid.find(verify_bagit) == {("invalid", name) for name in PAYLOAD if name != "data/\u00fcber"}
    old = {name: data for name, data in PAYLOAD.items() if "%" not in name}
    files = bag("old/", old, DECLARATION.replace(b"1.0", b"0.97"))
    files["old/manifest-md5.txt"] = b""
    del files["old/tagmanifest-sha512.txt"]
    laid.lay(files)
    assert laid.find(verify_bagit, "old") == set()


def test_a_file_to_be_fetched_is_missing(laid: Laid) -> None:
    """The finding says that the bag is not complete, and not from where the file would be fetched."""
    files = bag()
    files["fetch.txt"] = b"https://user:secret@x.test/q172.png 3 data/27613-h/images/q172.png\n"
    laid.lay(files)
    assert laid.find(verify_bagit) == set()
    laid.remove("data/27613-h/images/q172.png")
    assert ("missing", "data/27613-h/images/q172.png") in laid.find(verify_bagit)
    assert any("not fetched" in each.detail and "secret" not in each.detail for each in laid.faults)
    laid.lay({"fetch.txt": b"https://x.test/ - data/unknown\nnonsense\n"})
    assert {("invalid", "data/unknown"), ("invalid", "fetch.txt")} <= laid.find(verify_bagit)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"/etc/passwd", "unsafe"),
        (b"../outside", "unsafe"),
        (b"data/../../outside", "unsafe"),
        (b"data//twice", "unsafe"),
        (b"data/%0A/../..", "unsafe"),
        (b"bagit.txt", "invalid"),
        (b"\xff\xfe", "invalid"),
    ],
)
def test_a_path_that_leaves_the_bag_is_never_read(laid: Laid, line: bytes, kind: str) -> None:
    """It is a finding on the manifest, with the number of its line; the other lines count."""
    files = bag()
    del files["tagmanifest-sha512.txt"], files["manifest-md5.txt"]
    files["manifest-sha256.txt"] += b"0" * 64 + b"  " + line + b"\n"
    laid.lay(files)
    assert laid.find(verify_bagit) == {(kind, "manifest-sha256.txt")}
    assert "line 6" in laid.faults[0].detail


def test_a_manifest_that_is_no_list_is_not_read_to_its_end(laid: Laid) -> None:
    """Neither many bad lines nor one of gigabytes fill the report or the memory."""
    laid.lay({"bagit.txt": DECLARATION, "manifest-sha256.txt": b"x\n" * 100_000})
    laid.find(verify_bagit)
    assert len(laid.faults) == 11
    laid.lay({"manifest-sha256.txt": b"x" * (1 << 22)})
    assert laid.find(verify_bagit) == {("invalid", "manifest-sha256.txt")}


@pytest.mark.parametrize(
    ("declaration", "kind"),
    [
        (b"", "invalid"),
        (b"BagIt-Version: one\n", "invalid"),
        (b"\xef\xbb\xbf" + DECLARATION, "invalid"),
        (b"\xff", "invalid"),
        (DECLARATION.replace(b"UTF-8", b"UTF-16"), "unverifiable"),
    ],
)
def test_a_declaration_that_breaks_the_format_is_found(laid: Laid, declaration: bytes, kind: str) -> None:
    """Empty, without encoding, with a byte order mark, in an encoding that is not read."""
    laid.lay(bag(declaration=declaration))
    assert laid.find(verify_bagit) == {(kind, "bagit.txt")}


def test_an_encoding_other_than_utf_8_is_understood(laid: Laid) -> None:
    """Names in tag files are in the encoding that the bag declares."""
    files = bag(payload={"data/\u00fcber": b"x"}, declaration=DECLARATION.replace(b"UTF-8", b"ISO-8859-1"))
    for name in ("manifest-md5.txt", "manifest-sha256.txt"):
        files[name] = files[name].decode().encode("iso-8859-1")
    del files["tagmanifest-sha512.txt"]
    laid.lay(files)
    assert laid.find(verify_bagit) == set()


def test_a_bag_without_a_manifest_or_with_an_unknown_algorithm_is_told(laid: Laid) -> None:
    """Nothing in it can be verified."""
    laid.lay({"bagit.txt": DECLARATION, "data/a": b"x"})
    assert {kind for kind, _ in laid.find(verify_bagit)} == {"missing", "unreferenced"}
    laid.lay({"manifest-whirlpool.txt": b"0" * 128 + b" data/a\n"})
    assert laid.find(verify_bagit) == {("unverifiable", "data/a")}


def test_a_prefix_without_a_bag_is_an_error(laid: Laid) -> None:
    """So that a mistyped prefix is never reported as clean."""
    laid.lay({"a/notbagit.txt": b""})
    with pytest.raises(NoLayout):
        laid.find(verify_bagit)
