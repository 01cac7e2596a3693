"""Build the settings from the environment and the configuration file, and name each fault in one line."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_settings import SettingsError as SourceError

from worker.settings.configuration_file import read_file, unusable_in
from worker.settings.model import ENV_PREFIX, NO_DIRECTORY, Settings, SettingsError, did_you_mean, in_file, is_unicode
from worker.storage.config import StoreConfig
from zot_artifact_client.input_rules import NamedTwice, unique_names

_KINDS_OF_STORE = {kind.model_fields["type"].default: kind for kind in get_args(get_args(StoreConfig)[0])}
_OTHER_VARIABLES = ("ZOT_CONFIG", "ZOT_DEMO_", "ZOT_SERVERS_", "ZOT_TEST_", "ZOT_FLOWER_")


def load_settings(**overrides: object) -> Settings:
    """Build the settings from the environment and the configuration file.

    Raises:
        SettingsError: names are misspelt or values are wrong; names each of them without its value.
    """
    if sys.getfilesystemencoding() != "utf-8":
        raise SettingsError(
            f"the locale has file names in {sys.getfilesystemencoding()}, in which a directory store would have other "
            "names than for other programs: set PYTHONUTF8=1, or a locale of UTF-8 such as LC_ALL=C.UTF-8"
        )
    problems = list(_unknown_variables(os.environ))
    if not is_unicode(os.environ.get("ZOT_CONFIG", "")):
        problems.append("ZOT_CONFIG: its value is not UTF-8")
    if problems:
        raise SettingsError("\n".join(problems))
    try:
        found = read_file(os.environ.get("ZOT_CONFIG"))
        token = in_file.set(found)
        try:
            return Settings(**overrides)  # type: ignore[arg-type]  # checked by pydantic at run time
        except ValidationError as error:
            raise SettingsError("\n".join(_problems(error, found))) from None
        finally:
            in_file.reset(token)
    except SourceError as error:
        raise SettingsError(_bad_json(error)) from None
    except FileNotFoundError:  # of the current directory: a relative path has no meaning
        raise SettingsError(NO_DIRECTORY) from None
    except RecursionError:
        raise SettingsError("a value of the settings is nested too deeply") from None


def stores_in_file() -> frozenset[str]:
    """Return the names of the stores in the configuration file, as it is now; no name without a file.

    Nothing else in it is checked: it may be for a newer version, or for processes with other variables.

    Raises:
        SettingsError: it cannot be read.
    """
    found = read_file(os.environ.get("ZOT_CONFIG")).get("stores")
    return frozenset(found) if isinstance(found, dict) else frozenset()


def _unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    known = [f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields]
    seen = dict[str, str]()
    for variable in sorted(environ):
        upper = variable.upper()  # pydantic-settings reads `zot_home` as well
        ours = upper.startswith(ENV_PREFIX) and not variable.startswith(_OTHER_VARIABLES)
        name, *inner = upper.split("__")
        if not ours:
            continue
        if (other := seen.setdefault(upper, variable)) != variable:
            yield f"{other} and {variable} are one setting, which is there twice"
        elif name.endswith("_SERVICE_HOST"):
            yield (
                f"{variable} is not a setting: Kubernetes tells a Service by it, and by other variables, to each pod "
                "without `enableServiceLinks: false`"
            )
        elif name not in known:
            yield f"{variable} is not a setting{did_you_mean(upper, [*known, 'ZOT_CONFIG'])}"
        elif inner and not _has_parts(Settings.model_fields[name.removeprefix(ENV_PREFIX).lower()].annotation):
            yield f"{variable} is not a setting: {name} has no parts"
        elif not is_unicode(environ[variable]):
            yield f"{variable}: its value is not UTF-8"
        else:
            yield from (f"{variable}: {fault}" for fault in _unusable_in_json(environ[variable]))


def _has_parts(annotation: Any) -> bool:
    """Return whether a setting is no single value, so that a variable may name a part of it."""
    kinds = [annotation, *get_args(annotation)]
    return any(hasattr(kind, "model_fields") or get_origin(kind) not in {None, Union, UnionType} for kind in kinds)


def _unusable_in_json(text: str) -> list[str]:
    """Return the errors in a JSON text that the models cannot see.

    One is a name that is in one object twice: Python would use the last one in silence.
    """
    if not text.lstrip().startswith(("{", "[", '"')):
        return []
    try:
        return list(unusable_in("", json.loads(text, object_pairs_hook=unique_names), set()))
    except NamedTwice as error:
        return [str(error)]
    except (ValueError, RecursionError):
        return []  # what is no JSON is named when it is read


def _problems(error: ValidationError, in_file: Mapping[str, Any]) -> Iterable[str]:
    """Yield a line for each problem, with the variable, or the configuration file, that a setting is from."""
    name = os.environ.get("ZOT_CONFIG", "")
    for problem in error.errors(include_url=False, include_input=False):
        named = [str(part) for part in problem["loc"]]
        # Pydantic puts the type of a store after its name.
        path = named[:2] + named[3:] if named[:1] == ["stores"] else named
        told = _problem(problem, named, path)
        variables = list(_variables_of(path, without_last=problem["type"] == "missing"))
        if [variable.upper() for variable in variables] == [_variable_of(path)]:
            yield f"{variables[0]}{told.removeprefix('.'.join(path))}"
            continue
        is_in_file = _is_section(in_file, path) if variables else path[:1] and path[0] in in_file
        places = [*([name] if is_in_file else []), *variables]
        yield f"{', '.join(places)}: {told}" if places else told


def _is_section(found: Any, path: Sequence[str]) -> bool:
    """Return whether a file has parts of a setting, which variables then add to and do not replace."""
    for part in path:
        found = found.get(part) if isinstance(found, Mapping) else None
    return isinstance(found, Mapping)


def _variable_of(path: Sequence[str]) -> str:
    """Return the variable of the environment that has a setting."""
    return ENV_PREFIX + "__".join(path).upper()


def _variables_of(path: Sequence[str], *, without_last: bool) -> Iterable[str]:
    """Yield the variables that have a setting, or the section that it is in as JSON, or the parts of it.

    `without_last`: the setting is missing from its section.
    """
    there = {variable.upper(): variable for variable in sorted(os.environ)}
    for end in range(len(path), 0, -1):
        variable = there.get(_variable_of(path[:end]))
        inner = path[end : len(path) - without_last]
        if variable is not None and (end == len(path) or _has(os.environ[variable], inner)):
            yield variable
            return
    below = f"{_variable_of(path)}__"
    yield from (variable for upper, variable in there.items() if path and upper.startswith(below))


def _has(text: str, path: Sequence[str]) -> bool:
    """Return whether a JSON text has a value at this path."""
    try:
        found = json.loads(text)
        for part in path:
            found = found[int(part) if isinstance(found, list) else part]
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
    return True


def _problem(problem: Mapping[str, Any], named: list[str], path: list[str]) -> str:
    where = ".".join(path) or "settings"
    if problem["type"] == "extra_forbidden":
        name = path[-1].removeprefix(ENV_PREFIX.lower())  # as a variable of the environment has it
        return f"{where} is not a setting{did_you_mean(name, _names_near(named))}"
    if problem["type"] == "union_tag_not_found":
        return f"{where}.type is missing; there are: {', '.join(_KINDS_OF_STORE)}"
    if problem["type"] == "union_tag_invalid":
        return f"{where}.type: {problem['ctx']['tag']!r} is no kind of store; there are: {', '.join(_KINDS_OF_STORE)}"
    if problem["type"] == "tuple_type":
        return f'{where}: a list is expected, such as ["primary"]'
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _names_near(path: list[str]) -> list[str]:
    """Return the known names beside an unknown one, whose path has the type of a store."""
    if path[0] == "stores":
        return list(_KINDS_OF_STORE[path[2]].model_fields)
    model: Any = Settings
    for part in path[:-1]:
        if part not in model.model_fields:  # the name of a store
            continue
        annotation = model.model_fields[part].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if hasattr(a, "model_fields")), Settings)
    return list(model.model_fields)


def _bad_json(error: SourceError) -> str:
    """Return the error that names the variable whose value is no JSON; pydantic-settings names only the field."""
    field = next((name for name in Settings.model_fields if f'"{name}"' in str(error)), "")
    begins = f"{ENV_PREFIX}{field.upper()}"
    variables = [
        name for name in sorted(os.environ) if name.upper() == begins or name.upper().startswith(f"{begins}__")
    ]
    return f"{', '.join(variables) or begins}: the value must be JSON, such as '[\"primary\"]' or '{{\"key\": 1}}'"
