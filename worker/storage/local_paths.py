"""Read the paths of files and directories that settings name."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[/\\]")


def parse_path(value: object) -> object:
    """Return the path in a text, with the home directory in place of a `~` at its beginning.

    A text that is meant as something else would name a directory with an odd name, and be used as that.

    Raises:
        ValueError: it is empty, a URL or `-`, has a variable that nothing replaces, white space around it or a control
            character, or a `~` that names no home directory.
    """
    if not isinstance(value, str):
        return value  # a path, or what the model refuses
    if value in {"", "-"}:
        fault = (
            f"it is {'empty' if not value else '`-`, which names no file here'}; write a path such as /srv/artifacts"
        )
    elif _URL.match(value):
        fault = "it is a URL, or a path of another system; write a path such as /srv/artifacts"
    elif value.startswith(("$", "%")) or "${" in value:
        fault = "variables are not replaced in a setting; write the path itself, or `~` for the home directory"
    elif value != value.strip() or any(ord(char) < 32 or ord(char) == 127 for char in value):  # noqa: PLR2004 - ASCII
        fault = "there is white space around the path, or a control character in it"
    else:
        try:
            return Path(value).expanduser()
        except RuntimeError:
            fault = f"{Path(value).parts[0]!r} at its beginning names no home directory of this machine"
    raise ValueError(fault)


LocalPath = Annotated[Path, BeforeValidator(parse_path)]
