"""A sweep over the lists of `sha256sum` finds what `sha256sum -c` finds, and what no list names."""

import hashlib
import subprocess

import pytest

from tests.unit.artifacts.verify_layouts.conftest import Laid
from worker.artifacts.verify_layouts.checked_prefix import NoLayout
from worker.artifacts.verify_layouts.sha256sums import verify_sha256sums

FILES = {"a.tgz": b"a", "two words": b"b", "sub/deep": b"c", "back\\slash": b"d", "line\nend": b"e", "*star": b"f"}


def listed(laid: Laid, *options: str, tool: str = "sha256sum") -> bytes:
    """Return what the real tool writes about the files."""
    return subprocess.run([tool, *options, *FILES], cwd=laid.root, check=True, capture_output=True).stdout


@pytest.mark.parametrize("options", [(), ("-b",), ("--tag",)])
def test_what_sha256sum_writes_is_verified(laid: Laid, options: tuple[str, ...]) -> None:
    """Text and binary marks, the BSD format, names with backslashes and line ends."""
    laid.lay(FILES)
    laid.lay({"SHA256SUMS": listed(laid, *options), "SHA256SUMS.asc": b"signature"})
    assert laid.find(verify_sha256sums) == set()
    assert laid.place.tally.objects == len(FILES)
    for name in FILES:
        laid.flip(name)
    assert laid.find(verify_sha256sums) == {("corrupt", name) for name in FILES}


def test_sha512sum_is_verified_too(laid: Laid) -> None:
    """By the name of the list; both lists of one object are compared."""
    laid.lay(FILES)
    laid.lay({"SHA512SUMS": listed(laid, tool="sha512sum"), "SHA256SUMS": listed(laid)})
    assert laid.find(verify_sha256sums) == set()
    laid.lay(
        {"SHA512SUMS": listed(laid, tool="sha512sum").replace(hashlib.sha512(b"a").hexdigest().encode(), b"0" * 128)}
    )
    assert laid.find(verify_sha256sums) == {("corrupt", "a.tgz")}


def test_a_list_beside_its_object_is_verified(laid: Laid) -> None:
    """`NAME.sha256`, with and without a name in it; and the bare digest that a directory store keeps."""
    digest = hashlib.sha256(b"x").hexdigest()
    laid.lay({"one.bin": b"x", "one.bin.sha256": f"{digest}  one.bin\n".encode()})
    laid.lay({"two.bin": b"x", "two.bin.sha256": f"{digest.upper()}\n".encode()})
    assert laid.find(verify_sha256sums) == set()
    assert laid.place.tally.objects == 2
    laid.flip("two.bin")
    laid.flip("one.bin")
    assert laid.find(verify_sha256sums) == {("corrupt", "one.bin"), ("corrupt", "two.bin")}


def test_what_is_gone_and_what_no_list_names_is_found(laid: Laid) -> None:
    """Both ways, in every directory."""
    laid.lay(FILES | {"sub/other": b"x"})
    laid.lay({"SHA256SUMS": listed(laid)})
    laid.remove("sub/deep")
    assert laid.find(verify_sha256sums) == {("missing", "sub/deep"), ("unreferenced", "sub/other")}


def test_lists_that_contradict_each_other_are_found(laid: Laid) -> None:
    """The bytes cannot be those of both."""
    digest = hashlib.sha256(b"x").hexdigest()
    laid.lay({"a": b"x", "SHA256SUMS": f"{digest}  a\n".encode(), "sums.sha256": f"{'0' * 64}  a\n".encode()})
    assert laid.find(verify_sha256sums) == {("corrupt", "a")}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"0" * 64 + b"  /etc/passwd", "unsafe"),
        (b"0" * 64 + b"  ../a", "unsafe"),
        (b"0" * 64 + b"  sub/../../a", "unsafe"),
        (b"0" * 63 + b"  a", "invalid"),
        (b"0" * 64 + b" a", "invalid"),
        (b"\x00\xff\x00", "invalid"),
    ],
)
def test_a_line_that_cannot_be_used_is_told(laid: Laid, line: bytes, kind: str) -> None:
    """With its number; the other lines count, and nothing outside the directory is read."""
    laid.lay({"a": b"x", "SHA256SUMS": hashlib.sha256(b"x").hexdigest().encode() + b"  ./a\n# comment\n" + line})
    assert laid.find(verify_sha256sums) == {(kind, "SHA256SUMS")}
    assert "line 3" in laid.faults[0].detail
    assert laid.place.tally.objects == 1


def test_a_prefix_without_a_list_is_an_error(laid: Laid) -> None:
    """So that a mistyped prefix is never reported as clean."""
    laid.lay({"a": b""})
    with pytest.raises(NoLayout):
        laid.find(verify_sha256sums)
