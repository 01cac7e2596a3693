"""Refuse to start Flower without authentication: it shows every job and can cancel them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_OPTIONS = ("basic_auth", "auth", "auth_provider")
_CONFIG = "flowerconfig.py"
_SET = re.compile(rf"^({'|'.join(_OPTIONS)})\s*=\s*(?!None\b|\[\s*\]|\(\s*\)|\"\"|'')\S", re.MULTILINE)


def is_flower(arguments: Sequence[str]) -> bool:
    """Return whether this command line, without its program, starts Flower."""
    return "flower" in arguments


def check_authentication(arguments: Sequence[str], environ: Mapping[str, str], directory: Path) -> None:
    """Raise SystemExit, with the way out, unless Flower's options, environment or file name a kind of authentication.

    Args:
        arguments: the command line.
        environ: the environment of the process.
        directory: where Flower reads `flowerconfig.py`.
    """
    names = {name.replace("-", "_"): value for name, _, value in (a.lstrip("-").partition("=") for a in arguments)}
    users = [names.get("basic_auth", ""), environ.get("FLOWER_BASIC_AUTH", "")]
    if any(given_user and not has_passwords(given_user.split(",")) for given_user in users):
        raise SystemExit(
            "zot-artifacts: Flower takes a user without a password, who is everyone: give --basic-auth or "
            "FLOWER_BASIC_AUTH as USER:PASSWORD"
        )
    if not all(given_user.isascii() for given_user in users):
        raise SystemExit(
            "zot-artifacts: Flower cannot compare a user or password with letters that are not ASCII: choose others"
        )
    given = [argument.lstrip("-").replace("-", "_") for argument in arguments if argument.startswith("--")]
    if any(names.get(option) or (option in given and "=" not in option) for option in _OPTIONS):
        return
    if any(environ.get(f"FLOWER_{option.upper()}") for option in _OPTIONS):
        return
    config = Path(names.get("conf") or directory / _CONFIG)
    if config.is_file() and _SET.search(config.read_text(errors="replace")):
        return
    raise SystemExit(
        "zot-artifacts: Flower without authentication shows every job and lets anyone cancel them: set "
        "FLOWER_BASIC_AUTH=USER:PASSWORD, or give --basic-auth or another kind of its authentication"
    )


def has_passwords(users: Iterable[str]) -> bool:
    """Return whether each of these is `user:password`, with both."""
    return all(all(each.strip().partition(":")) for each in users)
