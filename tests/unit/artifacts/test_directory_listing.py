"""Test which files of a directory are uploaded, and under which keys."""

import os
import sys
from pathlib import Path

import pytest

from worker.artifacts.directory_listing import DirectoryListing, Filters
from zot_artifact_client.globs import selector


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.tmp", "sub/a.txt", "sub/deep/c.log", "sub/deep/d.txt", ".git/config"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "tree"


def keys(listing: DirectoryListing) -> list[str]:
    return [file.key for file in listing.files()]


def test_each_file_gets_its_path_as_a_key(tree: Path) -> None:
    """The key is the prefix and the path below the directory; count and bytes are those of the files."""
    listing = DirectoryListing(tree, "b", "p/")
    assert keys(listing) == [
        "p/.git/config", "p/a.txt", "p/b.tmp", "p/sub/a.txt", "p/sub/deep/c.log", "p/sub/deep/d.txt",
    ]  # fmt: skip
    assert (listing.count, listing.size, listing.failed) == (6, 58, 0)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.txt"], [], ["a.txt", "sub/a.txt", "sub/deep/d.txt"]),
        ([], [".git", "*.tmp"], ["a.txt", "sub/a.txt", "sub/deep/c.log", "sub/deep/d.txt"]),
        (["sub/*"], ["deep"], ["sub/a.txt"]),
        (["sub/*.txt"], [], ["sub/a.txt"]),
        (["sub/**/*.txt"], [], ["sub/a.txt", "sub/deep/d.txt"]),
        (["sub/"], [], ["sub/a.txt", "sub/deep/c.log", "sub/deep/d.txt"]),
        (["/a.txt"], [], ["a.txt"]),
        (["[ab].t?[tp]"], ["sub"], ["a.txt", "b.tmp"]),
        (["[!a]*.txt"], [], ["sub/deep/d.txt"]),
        (["*.txt"], ["sub/deep"], ["a.txt", "sub/a.txt"]),
        (["*t*t*"], ["/sub[!x]a.txt"], ["a.txt", "sub/a.txt", "sub/deep/d.txt"]),
        (["**/d*/**/c*g"], [], ["sub/deep/c.log"]),
        (["[[&|~]*", "[~-]*"], [], []),
    ],
)
def test_filters_take_names_and_paths(tree: Path, include: list[str], exclude: list[str], expected: list[str]) -> None:
    """A pattern without a slash is matched with names, one with a slash with the whole path; exclusion wins.

    `get -r`, which has keys and no directories, chooses the same.
    """
    filters = Filters(include, exclude)
    assert keys(DirectoryListing(tree, "b", "", filters)) == expected
    assert list(filter(selector(include, exclude), keys(DirectoryListing(tree, "b", "")))) == expected


def test_what_is_no_pattern_is_told(tree: Path) -> None:
    """It is an error of the caller, and any number of `**` in a row is as fast as one."""
    with pytest.raises(ValueError, match="bad character range z-a"):
        DirectoryListing(tree, "b", "", Filters(exclude=["[z-a]"]))
    assert keys(DirectoryListing(tree, "b", "", Filters(["**/" * 200 + "d.txt"]))) == ["sub/deep/d.txt"]
    assert not selector(["**/" * 200 + "x"], [])("d/" * 200 + "y")


@pytest.mark.parametrize(
    ("glob", "path"),
    [("*a" * 30 + "*b", "a" * 200), ("**/x*x/" * 30 + "y", "xx/" * 200), ("x/" + "*x?*" * 31, "x/" + "x" * 61)],
)
def test_no_pattern_takes_long_to_match(glob: str, path: str) -> None:
    """A pattern of a request holds up no worker, however many `*` it has."""
    assert not selector([glob], [])(path)


def test_symbolic_links_are_skipped_followed_or_refused(tree: Path, tmp_path: Path) -> None:
    """Links are counted, or what they refer to is listed without running in a circle, or each is a failure."""
    outside = tmp_path / "outside"
    outside.write_text("outside")
    (tree / "link").symlink_to(outside)
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "dangling").symlink_to(tmp_path / "nothing")
    skipping = DirectoryListing(tree, "b", "")
    assert "link" not in keys(skipping)
    assert (skipping.links, skipping.failed) == (3, 0)
    following = DirectoryListing(tree, "b", "", Filters(symlinks="follow"))
    assert "link" in keys(following)
    assert [path for path, _ in following.problems] == ["dangling", "sub/up/"]
    refusing = DirectoryListing(tree, "b", "", Filters(symlinks="error"))
    keys(refusing)
    assert [path for path, _ in refusing.problems] == ["dangling", "link", "sub/up"]


def test_what_cannot_be_uploaded_is_named_and_stops_nothing(tree: Path) -> None:
    """A name that no key has, a FIFO, and a name that is no text are left out; all others are listed."""
    (tree / "...").write_text("dots")
    (tree / ".zot-x").write_text("reserved")
    os.mkfifo(tree / "fifo")
    (tree / os.fsdecode(b"\xff.txt")).write_text("bytes")
    listing = DirectoryListing(tree, "b", "")
    assert len([key for key in keys(listing) if key != "..."]) == 6
    assert listing.special == 1
    assert {".zot-x", r"\xff.txt"} <= {path for path, _ in listing.problems}


def test_an_empty_directory_has_no_files(tmp_path: Path) -> None:
    """A directory without files lists nothing; one that is absent is a problem by name."""
    assert keys(DirectoryListing(tmp_path, "b", "")) == []
    absent = DirectoryListing(tmp_path / "absent", "b", "")
    assert keys(absent) == []
    assert absent.problems == [(".", "No such file or directory")]


def test_a_tree_may_be_deeper_than_python_calls_functions(tmp_path: Path) -> None:
    """What is in a very deep directory is listed or refused by name, as its key is short enough or not."""
    levels = sys.getrecursionlimit() + 10
    directory = os.open(tmp_path, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(os.open("f", os.O_CREAT, dir_fd=directory))
    (tmp_path / "z").write_text("last")
    listing = DirectoryListing(tmp_path, "b", "")
    try:
        assert keys(listing) == ["z"]
        assert [path for path, _ in listing.problems] == ["d/" * levels + "f"]
    finally:  # nothing that calls itself removes it
        os.unlink("f", dir_fd=directory)
        os.close(directory)
        os.removedirs(tmp_path / ("d/" * levels))
