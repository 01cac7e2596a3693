"""Errors before validation: files and variables that cannot be read, and impossible values."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from worker import input_files
from worker.settings import SettingsError, load_settings
from worker.settings.model import Settings


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"stores: \xff\xfe\n", "not UTF-8 at byte 8"),
        (b"a: " + b"[" * 20_000, "nested too deeply"),
        (b"{a: " * 3_000 + b"}" * 3_000, "nested too deeply"),
        (b"null\n", "this is null"),
        (b"- a\n", "this is a list"),
        (b"stores: null\n", "stores: a value is expected"),
        (b"home: null\n", "home: a value is expected"),
        (b"home: 5\n", "home: "),
        (b"home: ~nosuchuser/x\n", "home: '~nosuchuser' at its beginning names no home directory"),
        (b"stores: {p: {type: filesystem, root: ~nosuchuser/x}}\n", "stores.p.root: '~nosuchuser' at its beginning"),
        (b"sources: {roots: [~]}\n", "sources.roots.0: "),
        (b"sources: {max_size: yes}\n", "sources.max_size: True is not a size"),
        (b"sources: {max_size: -1}\n", "sources.max_size: -1 is not a size"),
        (b"{1: 2}\n", "1 is no name: write it in quotes"),
        (b"stores: {no: {type: filesystem, root: /x}}\n", "stores.False is no name: write it in quotes"),
        (b"when: 2026-13-45\n", "not valid YAML"),
        (b"retry: {max_attempts: 010}\n", "line 1: 010 is another number in YAML"),
        (b"retry:\n  max_attempts: 1:30\n", "line 2: 1:30 is another number in YAML"),
        (b"sources: {max_size: 0100}\n", "line 1: 0100 is another number in YAML"),
        (b"home: x\0\n", "not valid YAML: special characters are not allowed"),
        (b"sources: {max_size: 9000PiB}\n", "sources.max_size: it is too large"),
        (b"sources: {max_size: 0x%s}\n" % (b"f" * 40_000), "sources.max_size: it is too large"),
        ("sources: {max_size: ٣MiB}\n".encode(), "is not a size"),
        ("sources: {timeout: ٣s}\n".encode(), "is not a duration"),
        (b"a: &a [*a]\n", "a is not a setting"),
        (b'home: "a\\0b"\n', "NUL"),
        (b'stores: {p: {type: filesystem, root: "/a\\ud800"}}\n', "stores.p.root: half of a surrogate pair"),
        (b"retry: {backoff: 99999999999999999999999d}\n", "too long"),
        (b"jobs: {time_limit: 99999999d}\n", "too long"),
        (b"jobs: {lease: 30s}\njobs: {grace: 1m}\n", "line 2: jobs is there twice"),
        (b"jobs:\n  lease: 30s\n  lease: 40s\n", "line 3: lease is there twice"),
        (b"Jobs: {lease: 30s}\njobs: {lease: 40s}\n", "Jobs and jobs are one setting, which is there twice"),
        (b"JOBS: {lease: 30s}\nJobs: {lease: 40s}\n", "JOBS and Jobs are one setting, which is there twice"),
        (b"sources: {max_size: 0}\n", "sources.max_size: Input should be greater than or equal to 1"),
        (b"stores: {p: {type: gcs, bucket: b, part_size: 0}}\n", "stores.p.part_size: Input should be greater than"),
        (b"stores: {p: {type: s3, bucket: b, bucket_owner: 12-34}}\n", "stores.p.bucket_owner: String should match"),
        (b"stores: {p: {type: s3, bucket: b, kms_key_id: 'k '}}\n", "stores.p.kms_key_id: there is white space"),
        (b"cache: {gateway: gateway.example}\n", "cache.gateway: the URL begins with neither https:// nor http://"),
        (b"catalogue: sqlite:///~/c.sqlite3\n", "catalogue: `~` and variables are not replaced in it"),
        (b"catalogue: sqlite:////srv/${STAGE}/c.sqlite3\n", "catalogue: `~` and variables are not replaced in it"),
        (b"placement_rules: [{bucket: 's3://x', stores: [dr]}]\n", "placement_rules.0.bucket: no bucket has such"),
        (b"sweep: {report: {store: dr, bucket: 's3://x'}}\n", "sweep.report.bucket: use 1 to 63 letters"),
        (b"sweep: {evidence: {'off': [rd]}}\n", "sweep.evidence.off names the store 'rd', which is not configured"),
        (b"budgets: {dr: {requests_per_second: .inf}}\n", "budgets.dr.requests_per_second: Input should be a finite"),
        (b"stores: {}\n", "at least one store"),
        (b"stores: {'dr ': {type: filesystem, root: /x}}\n", "is no name of a store"),
        (b"stores: {'a,b': {type: filesystem, root: /x}}\n", "is no name of a store"),
        (b"#" * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    content: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a SettingsError of one short line, whatever YAML, Unicode or Python had against it."""
    config = tmp_path / "zot.yaml"
    config.write_bytes(content)
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert words in str(raised.value)
    assert len(str(raised.value)) < 500
    assert "\n" not in str(raised.value)


PATHS = {
    "home": "{home: %s}",
    "stores.p.root": "{stores: {p: {type: filesystem, root: %s}}}",
    "stores.p.credentials_file": "{stores: {p: {type: gcs, bucket: b, credentials_file: %s}}}",
    "sources.roots": "{sources: {roots: [%s]}}",
    "verification_log.signing_key": "{verification_log: {signing_key: %s}}",
    "verification_log.public_keys": "{verification_log: {public_keys: [%s]}}",
    "alarms.email.ca_file": "{alarms: {email: {server: h, sender: a@b, recipients: [a@b], ca_file: %s}}}",
    "cache.root": "{cache: {root: %s}}",
}
"""Every setting that names a file or directory."""


def _kinds_in(annotation: Any) -> list[Any]:
    return [annotation, *(kind for each in get_args(annotation) for kind in _kinds_in(each))]


def _paths_in(model: type[BaseModel], before: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        kinds = _kinds_in(field.annotation)
        if Path in kinds:
            found.add(f"{before}{name}")
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= _paths_in(kind, f"{before}{name}{'.p' if before == '' and name == 'stores' else ''}.")
    return found


def test_each_setting_that_is_a_path_is_named_here() -> None:
    """A new one has to be a path of this machine, too."""
    assert _paths_in(Settings) == set(PATHS)


@pytest.mark.parametrize("setting", PATHS)
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file:///srv/x", "it is a URL"),
        ("s3://bucket/x", "it is a URL"),
        ("C:\\data", "a path of another system"),
        ("$HOME/x", "variables are not replaced"),
        ("/srv/${STAGE}/x", "variables are not replaced"),
        ("", "it is empty"),
        ("-", "it is `-`"),
        ("/srv/x ", "white space around"),
        ("\u00a0/srv/x", "white space around"),
        ("/srv/\n/x", "a control character"),
        ("~nosuchuser/x", "names no home directory"),
    ],
)
def test_a_path_that_is_meant_as_something_else_is_refused(
    setting: str, path: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be the name of an odd directory; the error names the setting, in a file and in the environment."""
    config = tmp_path / "zot.yaml"
    config.write_text(PATHS[setting] % json.dumps(path))
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).startswith(f"{setting}: ")
    assert words in str(raised.value)
    monkeypatch.delenv("ZOT_CONFIG")
    ((section, value),) = yaml.safe_load(PATHS[setting] % json.dumps(path)).items()
    variable = f"ZOT_{section.upper()}"
    monkeypatch.setenv(variable, value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(SettingsError) as raised:
        load_settings()
    named = "" if setting == section else rf"{re.escape(setting)}(\.0)?: "
    assert re.match(f"{variable}: {named}", str(raised.value))
    assert words in str(raised.value)


def test_a_variable_names_the_home_directory_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` is the same in the environment as in a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZOT_CACHE__ROOT", "~/cache")
    monkeypatch.setenv("ZOT_STORES", '{"p": {"type": "filesystem", "root": "~/p"}}')
    found = load_settings()
    assert (found.cache.root, found.stores["p"].root) == (tmp_path / "cache", tmp_path / "p")  # type: ignore[union-attr]


def test_a_device_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device or a pipe is read up to the largest size of a configuration file."""
    monkeypatch.setenv("ZOT_CONFIG", "/dev/zero")
    with pytest.raises(SettingsError, match="more than"):
        load_settings()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ZOT_STORES", '{"p": {"type": "filesystem", "root": "/a"}, "p": {"root": "/b"}}', "p is there twice"),
        ("ZOT_STORES", '{"p": {"type": "filesystem", "root": "/a", "root": "/b"}}', "root is there twice"),
        ("ZOT_JOBS", '{"lease": "30s", "lease": "40s"}', "lease is there twice"),
        ("ZOT_STORES", r'{"p": {"type": "filesystem", "root": "/hunter2\u0000"}}', "p.root: the character NUL"),
        ("ZOT_STORES", r'{"p": {"type": "filesystem", "root": "/hunter2\ud800"}}', "p.root: half of a surrogate pair"),
        ("ZOT_BROKER__PASSWORD", "hunter2", "ZOT_BROKER has no parts"),
        ("ZOT_HOME__X", "hunter2", "ZOT_HOME has no parts"),
        ("ZOT_HOME", "/hunter2/\udcff", "its value is not UTF-8"),
        ("ZOT_CONFIG", "/hunter2/\udcff", "its value is not UTF-8"),
        ("ZOT_SOURCES__ROOTS", '["/hunter2/\udcff"]', "its value is not UTF-8"),
    ],
)
def test_a_variable_is_read_as_strictly_as_a_file(
    variable: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is there twice, or a part of a setting without parts, is an error that names the variable."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"^{variable}[: ].*{words}") as raised:
        load_settings()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("value", ["[]", "{}"])
def test_stores_that_are_none_are_not_replaced_by_the_defaults(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stores in the data directory are meant only where nothing is said about stores."""
    monkeypatch.setenv("ZOT_STORES", value)
    with pytest.raises(SettingsError, match="ZOT_STORES"):
        load_settings()


def test_a_file_of_comments_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in which every setting is a comment means the defaults."""
    config = tmp_path / "zot.yaml"
    config.write_text("# stores: {}\n")
    monkeypatch.setenv("ZOT_CONFIG", str(config))
    assert set(load_settings(home=tmp_path).stores) == {"primary", "dr"}


@pytest.mark.parametrize("variable", ["ZOT_STORES", "ZOT_SOURCES__ROOTS"])
def test_a_variable_that_is_no_json_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named and its value, which may be a secret, is not."""
    monkeypatch.setenv(variable, "{hunter2")
    with pytest.raises(SettingsError, match=f"^{variable}: the value must be JSON") as raised:
        load_settings()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("name", ["a b", "x%20y", "q?x#y", "jürgen"])
def test_the_embedded_catalogue_is_in_the_data_directory(name: str, tmp_path: Path) -> None:
    """The URL of the catalogue leads to the file in the data directory, whatever the directory's name."""
    from sqlalchemy import make_url

    settings = Settings(home=tmp_path / name)
    assert make_url(settings.catalogue_url).database == str(settings.catalogue_file)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "there is another kind of file; set ZOT_HOME to one that can"),
        ("staging", "is no directory, and a directory belongs there: move it away"),
        ("run", "is no directory, and a directory belongs there: move it away"),
    ],
)
def test_a_data_directory_that_is_a_file_is_named(name: str, told: str, tmp_path: Path) -> None:
    """The error names the file that is in the place of a directory, and says what to do."""
    settings = load_settings(home=tmp_path / "home")
    path = settings.home / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(SettingsError, match=f"{name}.*{told}"):
        settings.prepare()


def test_a_worker_tells_wrong_settings_in_one_escaped_line(tmp_path: Path) -> None:
    """`celery -A worker.app` ends with one bounded line, whatever a name in the file would do to a terminal."""
    config = tmp_path / "zot.yaml"
    config.write_text('? "\\e[31m\\u202e\\n"\n: 1\n' + "".join(f"k{n}: 1\n" for n in range(5000)))
    command = (sys.executable, "-c", "import worker.app")
    done = subprocess.run(
        command, env=os.environ | {"ZOT_CONFIG": str(config)}, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith(rf"zot-artifacts: {config}: \x1b[31m\u202e")
    assert done.stderr.rstrip("\n").isprintable()
    assert len(done.stderr) < 2100


@pytest.mark.parametrize(
    ("text", "variables", "told"),
    [
        ("retry: {max_attempts: none}", {}, "{file}: retry.max_attempts: "),
        ("retri: {max_attempts: 3}", {}, "{file}: retri is not a setting"),
        ("stores: {dr: {type: tape}}", {}, "{file}: stores.dr.type: 'tape' is no kind of store"),
        ("retry: {max_attempts: 3}", {"ZOT_RETRY__MAX_ATTEMPTS": "none"}, "ZOT_RETRY__MAX_ATTEMPTS: Input"),
        ("", {"zot_retry__max_attempts": "none"}, "zot_retry__max_attempts: Input"),
        ("", {"ZOT_RETRY__MAX_ATEMPTS": "3"}, "ZOT_RETRY__MAX_ATEMPTS is not a setting; did you mean 'max_attempts'"),
        ("", {"ZOT_RETRY": '{"max_attempts": "none"}'}, "ZOT_RETRY: retry.max_attempts: Input"),
        ("retry: {max_attempts: none}", {"ZOT_RETRY": '{"backoff": "2s"}'}, "{file}: retry.max_attempts: "),
        ("", {"ZOT_PLACEMENT": "primary"}, 'ZOT_PLACEMENT: a list is expected, such as ["primary"]'),
        ("", {"ZOT_STORES": '{"s": {"type": "filesystem"}}'}, "ZOT_STORES: stores.s.root: "),
        ("", {"ZOT_STORES__S__BUCKET": "b"}, "ZOT_STORES__S__BUCKET: stores.s.type is missing"),
        (
            "stores: {s: {type: s3, bucket: b}}",
            {"ZOT_STORES__S__PART_SIZE": "none"},
            "ZOT_STORES__S__PART_SIZE: 'none'",
        ),
        ("stores: {s: {type: s3, bucket: b, part_size: none}}", {}, "{file}: stores.s.part_size: "),
        (
            "stores: {s: {type: s3, bucket: b, access_key_id: a}}",
            {"ZOT_STORES__S__REGION": "r"},
            "{file}, ZOT_STORES__S__REGION: stores.s: access_key_id and secret_access_key",
        ),
    ],
)
def test_a_wrong_setting_names_where_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, variables: dict[str, str], told: str
) -> None:
    """The line of a setting begins with the file or the variable that it is from."""
    file = tmp_path / "zot.yaml"
    file.write_text(text)
    for name, value in {"ZOT_CONFIG": str(file), **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert str(error.value).startswith(told.format(file=file))


def test_a_wrong_setting_in_a_pipe_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read once: a pipe has nothing for a second time."""
    pipe = tmp_path / "zot.yaml"
    os.mkfifo(pipe)
    monkeypatch.setenv("ZOT_CONFIG", str(pipe))
    monkeypatch.setattr(input_files, "PATIENCE", 1)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(pipe.write_text, "sources: {max_size: -1}\n")
        with pytest.raises(SettingsError, match=f"^{pipe}: sources.max_size: -1 is not a size"):
            load_settings()
