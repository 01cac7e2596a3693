"""The patterns of `include` and `exclude`: which paths below a directory they match."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, compiled. `whole`: it has a slash, and is matched with whole paths; otherwise with each name in them.

    It also matches everything below the directory that it names.
    """

    whole: bool
    regex: re.Pattern[str]


def compiled(glob: str) -> Pattern:
    """Return a pattern, compiled: `*` and `?` match within a name, `**` any number of directories.

    Raises:
        ValueError: it is none, such as `[z-a]`.
    """
    fixed = [""]
    for name in glob.strip("/").split("/"):
        if name == "**":
            fixed.append("")
        else:
            fixed[-1] += f"{_name(name)}/"
    text = _in_order(fixed, "(?:[^/]+/)*")
    text = text.removesuffix("/") + r"(?:/.*)?" if text.endswith("/") else text + r".*"
    try:
        return Pattern("/" in glob, re.compile(text, re.DOTALL))
    except re.error as error:
        raise ValueError(f"a pattern with `*`, `?`, `**` and `[…]` is expected: {error.msg}") from None


def matches(patterns: Iterable[Pattern], path: str) -> bool:
    """Return whether one of the patterns matches a path."""
    return any(
        pattern.regex.fullmatch(path)
        if pattern.whole
        else any(pattern.regex.fullmatch(name) for name in path.split("/"))
        for pattern in patterns
    )


def selector(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Return what tells whether a path is wanted: `include` matches it, or is empty, and `exclude` does not match it.

    A path is not wanted either where a directory on its way is excluded. Raise ValueError: a pattern is none.
    """
    wanted, unwanted = [[compiled(glob) for glob in globs] for globs in (include, exclude)]

    def wants(path: str) -> bool:
        ways = [path[: slash.start()] for slash in re.finditer("/", path)] if unwanted else []
        excluded = any(matches(unwanted, way) for way in (*ways, path))
        return not excluded and (not wanted or matches(wanted, path))

    return wants


def _name(glob: str) -> str:
    """Return the regular expression of a pattern without slashes."""
    fixed, at = [""], 0
    while at < len(glob):
        end = glob.find("]", at + 2) if glob[at] == "[" else -1
        if end > 0:
            chars = re.sub(r"([\\\[&|~])", r"\\\1", glob[at + 1 : end])
            fixed[-1] += f"(?!/)[{chars.replace('!', '^', 1) if chars[0] == '!' else chars}]"
            at = end
        elif glob[at] == "*":
            fixed.append("")
        else:
            fixed[-1] += "[^/]" if glob[at] == "?" else re.escape(glob[at])
        at += 1
    return _in_order(fixed, "[^/]*")


def _in_order(fixed: Sequence[str], gap: str) -> str:
    """Return the regular expression of what has these parts in this order, with gaps between them.

    Each but the first and the last is taken where it is found first, and never looked for again (`(?>…)`): where that
    does not match, nothing does, and to try all places of all parts would take for ever.
    """
    first, *between = fixed
    last = f"{gap}{between.pop()}" if between else ""
    return first + "".join(f"(?>{gap}?{part})" for part in between) + last
