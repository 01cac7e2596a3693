"""Read the configuration file: YAML without what would be taken for something else in silence."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from worker.input_files import read_input
from worker.settings.model import SettingsError
from worker.settings.translate_config_of_original_store import OriginalRefused, translate
from worker.storage.local_paths import parse_path

_MAX_FILE = 1 << 20
"""Bytes of the largest configuration file."""
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER_BASE = re.compile(r"[-+]?0[0-9_]+|[^:]*:.*")
"""A number to the base 8 or 60."""
_MODES = ("file_mode", "dir_mode")
"""The settings that take no number at all, and say so themselves."""
_PATHS = {"home", "root", "roots", "signing_key", "public_keys", "credentials_file", "ca_file"}
"""The settings that are paths, in whatever section."""


def read_file(name: str | None) -> dict[str, Any]:
    """Return the settings in the file, with absolute paths; none without a name.

    Raises:
        SettingsError: it cannot be read, or is no mapping of settings; names the line.
    """
    if not name:
        return {}
    data = _parse_file(name)
    if not isinstance(data, dict):
        kind = "null" if data is None else f"a {type(data).__name__}"
        raise SettingsError(f"{name}: a mapping of settings is expected, this is {kind}")
    problems = list(_unusable(data))
    if problems:
        raise SettingsError("\n".join(f"{name}: {problem}" for problem in problems))
    try:
        settings = translate(data) if "storage" in data else data
    except OriginalRefused as error:
        raise SettingsError(str(error)) from None
    spelt: dict[str, str] = {}
    for setting in settings:
        if (other := spelt.setdefault(setting.lower(), setting)) != setting:
            raise SettingsError(f"{name}: {other} and {setting} are one setting, which is there twice")
    settings = {setting.lower(): value for setting, value in settings.items()}  # as pydantic-settings reads them
    _make_absolute(settings, Path(name).absolute().parent)
    return settings


def _parse_file(name: str) -> Any:
    try:
        text = read_input(name, _MAX_FILE + 1).decode()
        if len(text) > _MAX_FILE:
            raise SettingsError(f"ZOT_CONFIG names {name}, which has more than {_MAX_FILE} bytes")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:  # empty, or only comments
            return {}
        for each in _nodes(node):
            if (fault := _named_twice(each) or _other_number(each)) is not None:
                raise SettingsError(f"{name} line {fault[0].start_mark.line + 1}: {fault[0].value} {fault[1]}")
        return loader.construct_document(node)
    except OSError as error:
        raise SettingsError(f"ZOT_CONFIG names {name}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except yaml.YAMLError as error:
        where = f" line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise SettingsError(f"{name}{where}: not valid YAML: {why}") from None
    except ValueError as error:  # a date or a number that YAML knows and Python does not
        raise SettingsError(f"{name}: not valid YAML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{name}: nested too deeply") from None


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Yield each node of a document once, also where aliases repeat it or it contains itself."""
    todo, done = [root], set[int]()
    while todo:
        each = todo.pop()
        if id(each) in done:
            continue
        done.add(id(each))
        yield each
        if isinstance(each, yaml.MappingNode):
            todo += [value for _, value in each.value]
        elif isinstance(each, yaml.SequenceNode):
            todo += each.value


def _named_twice(node: yaml.Node) -> tuple[yaml.Node, str] | None:
    """Return a name that is in a mapping twice, and the fault: YAML would use the last one in silence."""
    names = set[str]()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            if key.value in names:
                return key, "is there twice"
            names.add(key.value)
    return None


def _other_number(node: yaml.Node) -> tuple[yaml.Node, str] | None:
    """Return a number that YAML reads with another base than people do, and the fault: 010 is 8, and 1:30 is 90."""
    values = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        values = [value for key, value in node.value if key.value not in _MODES]
    for each in values:
        if each.tag in _NUMBERS and _OTHER_BASE.fullmatch(each.value):
            return each, "is another number in YAML: write it without a leading 0 or a colon, or in quotes"
    return None


def _unusable(data: Mapping[Any, Any]) -> Iterable[str]:
    """Yield the errors that the models of the settings cannot see."""
    for key in ("home", "stores"):
        if key in data and data[key] is None:
            yield f"{key}: a value is expected, this is null"
    yield from unusable_in("", data, set())


def unusable_in(where: str, value: object, seen: set[int]) -> Iterable[str]:
    """Yield the errors in a value that the models cannot see; `where` it is, and the lists and maps `seen` before."""
    if isinstance(value, str) and "\0" in value:
        yield f"{where}: the character NUL cannot be part of a value"
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        yield f"{where}: half of a surrogate pair cannot be part of a value"
    if isinstance(value, dict | list) and id(value) not in seen:  # an alias may contain itself
        seen.add(id(value))
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(name, str):  # such as `no`, which YAML takes for false
                yield f"{where}.{name!r} is no name: write it in quotes".removeprefix(".")
            yield from unusable_in(f"{where}.{name}".removeprefix("."), each, seen)


def _make_absolute(data: dict[str, Any], base: Path) -> None:
    """Resolve relative paths against the file's directory, because its readers start in different directories.

    Raises:
        SettingsError: a path begins with a `~` that names no home directory.
    """
    stores, alarms = data.get("stores"), data.get("alarms")
    sections: list[tuple[str, Any]] = [
        ("", data),
        *((name, data.get(name)) for name in ("sources", "verification_log", "cache")),
    ]
    if isinstance(stores, dict):
        sections += [(f"stores.{name}", store) for name, store in stores.items()]
    if isinstance(alarms, dict):
        sections.append(("alarms.email", alarms.get("email")))
    for where, section in sections:
        for name in _PATHS.intersection(section) if isinstance(section, dict) else ():
            value = section[name]
            try:
                section[name] = [_from(base, each) for each in value] if isinstance(value, list) else _from(base, value)
            except ValueError as error:
                raise SettingsError(f"{where}.{name}: {error}".removeprefix(".")) from None


def _from(base: Path, path: object) -> object:
    found = parse_path(path)
    return base / found if isinstance(found, Path) else found  # the models refuse what is no text
