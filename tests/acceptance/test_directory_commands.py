"""A directory is uploaded and downloaded by one command each, against a real `zot-artifacts up`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.commands import Zot
from tests.acceptance.forked_up import running
from tests.waiting import WITHIN
from zot_artifact_client import ArtifactClient


@pytest.fixture(scope="module")
def zot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zot]:
    """Return the command line beside an `up` with two directories as stores and one root."""
    home = tmp_path_factory.mktemp("directories") / "home"
    (home.parent / "in").mkdir()
    with running(home, "--no-beat", "--no-flower", ZOT_SOURCES__ROOTS=json.dumps([str(home.parent / "in")])):
        yield Zot(home)


def lay(root: Path) -> dict[str, bytes]:
    """Make a directory with a link, an ignored file and a file that is too large for a page, and return its files."""
    contents = {f"d{number % 2}/f{number}": b"x" * number for number in range(20)} | {"large": b"y" * (17 << 20)}
    for name, content in (contents | {"d0/no.tmp": b"ignored"}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "link").symlink_to("large")
    return contents


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", ["in", "outside"])
def test_a_directory_goes_there_and_back(zot: Zot, place: str) -> None:
    """Each file is uploaded, in place or staged, found again, and downloaded; the same commands again do nothing."""
    root = zot.home.parent / place / "tree"
    contents = lay(root)
    arguments = ("upload", "-r", root, f"dirs/{place}", "--exclude", "*.tmp")
    assert "21 files" in zot(*arguments, "--dry-run").stdout
    done = zot(*arguments)
    assert (done.status, done.stdout) == (0, "upload: 21 objects, 17.0 MiB: 21 stored\n")
    assert "skipped: 1 symbolic link;" in done.stderr
    again = zot(*arguments, "--json").document
    assert again["result"]["outcomes"] == {"already_there": 21}
    assert list((zot.home / "staging").iterdir()) == []
    back = zot.home.parent / f"back-{place}"
    got = zot("get", "-r", f"dirs/{place}", back)
    assert (got.status, got.stdout) == (0, "21 written, 0 already there, 17.0 MiB, verified\n")
    assert content_of(back) == contents
    (back / "d0" / "f2").write_bytes(b"??")
    assert zot("get", "-r", f"dirs/{place}", back).stdout == "1 written, 20 already there, 17.0 MiB, verified\n"
    assert content_of(back) == contents
    some = ("get", "-r", f"dirs/{place}", zot.home.parent / f"some-{place}", "--include", "d0", "--exclude", "f?")
    assert zot(*some, "--dry-run").stdout == "5 artifacts, 70 B would be read; nothing was written\n"
    assert not some[3].exists()
    assert zot(*some).stdout == "5 written, 0 already there, 70 B, verified\n"
    assert sorted(content_of(some[3])) == [f"d0/f{number}" for number in range(10, 20, 2)]
    assert zot(*some, "--include", "no").status == 0
    assert zot("get", "dirs/x", "x", "--include", "d0").status == 2


def test_what_fails_is_named_and_stops_nothing(zot: Zot) -> None:
    """A file without a possible key ends the upload with 1 and its name; the others are uploaded."""
    root = zot.home.parent / "in" / "odd"
    root.mkdir()
    (root / ".zot-x").write_bytes(b"reserved")
    none = zot("upload", "-r", root, "odd")
    assert (none.status, ".zot-x: key" in none.stderr) == (1, True)
    assert none.stderr.endswith("there is no file to upload in it; not sent: 1 path\n")
    (root / "good").write_bytes(b"good")
    for name in ("two\nlines", "two  lines ", "t\tb"):
        (root / name).write_bytes(b"no key")
    done = zot("upload", "-r", root, "odd")
    assert (done.status, done.stdout) == (1, "upload: 1 object, 4 B: 1 stored\n")
    *named, last = done.stderr.splitlines()
    names = [line.partition(": key ")[0].removeprefix(f"zot-artifacts: {root}/") for line in named]
    assert names == [".zot-x", "t\\tb", "two\\nlines", "two  lines "]
    assert last == "zot-artifacts: not sent: 4 paths"
    document = json.loads(zot("upload", "-r", root, "odd", "--json").stdout)
    assert (document["result"]["failed"], document["not_sent"]["failed"]) == (0, 4)
    assert {each["path"] for each in document["not_sent"]["failures"]} == {
        ".zot-x",
        "t\tb",
        "two\nlines",
        "two  lines ",
    }
    back = zot.home.parent / "odd-back"
    back.mkdir()
    outside = zot.home.parent / "precious"
    outside.write_bytes(b"precious")
    (back / "good").symlink_to(outside)
    refused = zot("get", "-r", "odd", back)
    assert refused.status == 1
    assert "odd/good: a symbolic link" in refused.stderr
    assert outside.read_bytes() == b"precious"
    (root / "d").mkdir()
    (root / "d" / "below").write_bytes(b"below")
    zot("upload", "-r", root, "odd")
    nowhere = zot("get", "-r", "odd", "/proc/self").stderr
    assert "/good cannot be written: No such file or directory; name another file\n" in nowhere
    assert "/d: No such file or directory; name another DEST\n" in nowhere


def test_a_service_uploads_a_directory_below_a_root(zot: Zot) -> None:
    """`upload_dir` lists the directory in the worker; one outside the roots is refused."""
    root = zot.home.parent / "in" / "service"
    contents = lay(root)
    with ArtifactClient((zot.home / "run" / "broker-url").read_text().strip()) as client:
        result = client.upload_dir(root, "service", "v1", exclude=["*.tmp", "large"]).wait(WITHIN)
        assert (result.objects, result.outcomes, result.good) == (20, {"stored": 20}, True)
        refused = client.upload_dir(os.fspath(zot.home.parent / "elsewhere"), "service")
        with pytest.raises(Exception, match="sources.roots"):
            refused.wait(WITHIN)
    assert zot("get", "service/v1/d1/f3", "-").stdout.encode() == contents["d1/f3"]
