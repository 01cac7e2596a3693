"""Check the rules of this repository that no linter knows."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from tools.environments import LOCKS as LOCK_FOLDER
from tools.environments import SERVERS

ROOT = Path(__file__).resolve().parents[2]
LOCKS = [
    f"{path.relative_to(ROOT)}" for path in sorted([*ROOT.glob("*.lock"), *ROOT.glob("tests/servers/locks/*.lock")])
]
CODE = ("api_client", "benchmarks", "examples", "tasks", "tests", "tools", "worker")
# Words that docs/glossary.md replaces, and pronouns and metaphors that hide who does what.
BANNED = re.compile(
    r"\b(?:somebody|nobody|everybody|anybody|whoever|stands?|stood|lies|lying|bears?|weather|debris|overtaken"
    r"|doors?|gates?"
    r"|mend(?:s|ed|ing)?|put(?:s|ting)? off|put-offs?|sets? aside|hand(?:s|ed|ing)? back"
    r"|passing faults?|left alone|leaves? alone|tr(?:y|ies|ied|ying) out|beg[iau]n(?:s|ning)? again"
    r"|com(?:e|es|ing) again|came again|look(?:s|ed|ing)? at|sign of life|left-?overs?"
    r"|(?:came|becomes?|became) of|came out|as it should|behind \w+(?:'s)? back|throw(?:s|n|ing)? away|threw away"
    r"|go(?:es)? away with|next to nothing|gone over to)\b",
    re.IGNORECASE,
)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)[^)]*\)")
QUOTED = re.compile(r"`[^`]*`|\]\([^)]*\)|https?://\S+")
TWO_SENTENCES = re.compile(r"[.?!][)*\"]* +[A-Z\"(*]")
SENTENCE_END = re.compile(r"[.:?!][)*_\"]*$")
PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==(\S+?)(?: ; [^\\]+)? \\$")


def _tests() -> Iterator[tuple[str, str]]:
    """Yield the name of each test and its docstring."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, docstring in _source(path).tests:
            yield f"{path.relative_to(ROOT)}::{name}", docstring


def _python() -> Iterator[Path]:
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not {"build", "node_modules"} & set(path.parts):
                yield path


def _markdown() -> Iterator[Path]:
    found = [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/**/*.md")]
    yield from (path for path in sorted([*found, *(ROOT / folder / "README.md" for folder in CODE)]) if path.is_file())


@dataclass(frozen=True)
class Source:
    """What a Python file tells its readers.

    Attributes:
        docstring: of the module.
        prose: each string with its line, and each comment of a file where one may hold a banned word; of tests no
            string but docstrings, because the others are data.
        tests: the name and the docstring of each test.
    """

    docstring: str
    prose: tuple[tuple[int, str], ...]
    tests: tuple[tuple[str, str], ...]


@cache
def _source(path: Path) -> Source:
    """Return what a file tells, without its syntax tree: those of all files would fill the memory."""
    source = path.read_text()
    tree = ast.parse(source)
    docstrings, strings, tests = set[int](), list[ast.Constant](), list[tuple[str, str]]()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.body and isinstance(node.body[0], ast.Expr):
                docstrings.add(id(node.body[0].value))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                tests.append((node.name, ast.get_docstring(node) or ""))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            strings.append(node)
    data = path.is_relative_to(ROOT / "tests")
    prose = [(each.lineno, str(each.value)) for each in strings if id(each) in docstrings or not data]
    if any(BANNED.search(line.partition("#")[2]) for line in source.splitlines() if "#" in line):
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)  # it is slow, and few files may have a hit
        prose += [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    return Source(ast.get_docstring(tree) or "", tuple(prose), tuple(tests))


def _prose_of_markdown(path: Path, hide: tuple[str, ...] = ("|", "<", "[")) -> Iterator[tuple[int, str]]:
    """Yield each line with its number; code, generated measurements and lines that begin with `hide` are empty."""
    hidden = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        marker = (
            text.startswith("```") or "<!-- the last full run" in text or "<!-- the end of the last full run" in text
        )
        hidden ^= marker
        yield number, "" if marker or hidden or text.startswith(hide) else text


def _banned(path: Path, prose: Iterable[tuple[int, str]]) -> Iterator[str]:
    for number, text in prose:
        for match in BANNED.finditer(QUOTED.sub("", text)):
            yield f"{path.relative_to(ROOT)}:{number}: {match[0]}"


def test_prose_uses_the_words_of_the_glossary() -> None:
    """Docstrings, comments, messages, help texts and Markdown hold no word that the glossary replaces."""
    found = [hit for path in _python() for hit in _banned(path, _source(path).prose)]
    found += [hit for path in _markdown() for hit in _banned(path, _prose_of_markdown(path, ("<",)))]
    found += [name for name, _ in _tests() if BANNED.search(name.split("::")[1].replace("_", " "))]
    assert found == []


def test_a_module_says_in_one_sentence_what_it_holds() -> None:
    """The first line of a module's docstring is one sentence, with its full stop."""
    lines = {path: _source(path).docstring.split("\n")[0] for path in _python()}
    wrong = [
        f"{path.relative_to(ROOT)}: {line}"
        for path, line in lines.items()
        if line and (line[-1] not in ".?" or TWO_SENTENCES.search(line))
    ]
    assert wrong == []


def test_markdown_has_one_sentence_a_line() -> None:
    """A line of Markdown holds one whole sentence and at most 160 characters, so that a change shows as one line."""
    found = []
    for path in _markdown():
        before = ""
        for number, text in _prose_of_markdown(path):
            prose = re.sub(r"^(?:[-*>]|\d+\.) +", "", text)
            plain = re.sub(r"`[^`]*`", "`", prose)
            begins = prose != text or text.startswith("#")
            split = before and text and not begins and not SENTENCE_END.search(before)
            two = TWO_SENTENCES.search(plain) and not text.startswith("#")
            if len(text) > 160 or split or two:
                found.append(f"{path.relative_to(ROOT)}:{number}: {text}")
            before = "" if text.startswith("#") else text
    assert found == []


def test_every_test_says_what_it_promises() -> None:
    """Each test has a docstring, so that a red one says what no longer holds."""
    silent = [name for name, docstring in _tests() if not docstring]
    assert silent == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index(lock: str) -> None:
    """Users install from an index of their own choice: no lock holds an address or an option of pip."""
    lines = (ROOT / lock).read_text().splitlines()
    assert [line for line in lines if "://" in line or line.startswith("-")] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_everything_with_hashes(lock: str) -> None:
    """Nothing that was not checked is installed: every requirement has one version and at least one SHA-256."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / lock).read_text(), flags=re.MULTILINE)
    entries = re.split(r"\n(?! )", text.strip())
    assert entries
    assert [entry for entry in entries if not PIN.match(entry.split("\n")[0]) or "--hash=sha256:" not in entry] == []


def _pins(lock: str) -> dict[str, str]:
    return {match[1]: match[2] for line in (ROOT / lock).read_text().splitlines() if (match := PIN.match(line))}


@pytest.mark.parametrize(
    "lock, extras", [("requirements.lock", {"build"}), ("requirements-dev.lock", {"build", "dev"})]
)
def test_the_locks_hold_what_the_distributions_ask_for(lock: str, extras: set[str]) -> None:
    """A dependency that was added to a pyproject file is in the locks too, or `make lock` was forgotten."""
    asked: set[str] = set()
    for project in ("pyproject.toml", "api_client/pyproject.toml"):
        table = tomllib.loads((ROOT / project).read_text())["project"]
        optional = table.get("optional-dependencies", {})
        for group in (table["dependencies"], *(optional.get(extra, ()) for extra in extras)):
            asked |= {re.split(r"[\[<>=!~; ]", name)[0].lower().replace("_", "-") for name in group}
    assert asked - _pins(lock).keys() == {"zot-artifact-client"}


def test_development_has_the_versions_that_production_has() -> None:
    """What is tested is what is run: the lock for development holds every pin of the other one."""
    assert _pins("requirements.lock").items() <= _pins("requirements-dev.lock").items()


def test_every_test_server_has_a_lock() -> None:
    """What tools/environments.py installs is locked, and nothing else is."""
    assert {path.stem for path in LOCK_FOLDER.glob("*.lock")} == SERVERS.keys()


def test_no_two_test_files_share_a_name() -> None:
    """A test file is found by its name, and reports name one file."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_migrations_follow_one_another() -> None:
    """Each migration has a number and a parent of its own, and the catalogue asks for the last of one chain."""
    files = sorted((ROOT / "worker" / "catalogue" / "migrations" / "versions").glob("[0-9]*.py"))
    wrote = {path: dict(re.findall(r'^(\w+) = "?(\w+)"?$', path.read_text(), flags=re.MULTILINE)) for path in files}
    numbers = [f"{number:04}" for number in range(1, len(files) + 1)]
    assert [path.name[:4] for path in files] == numbers
    assert [each["revision"] for each in wrote.values()] == numbers
    assert [each["down_revision"] for each in wrote.values()] == ["None", *numbers[:-1]]
    assert f'_REVISION = "{numbers[-1]}"' in (ROOT / "worker" / "catalogue" / "database.py").read_text()


def test_commit_hooks_are_local() -> None:
    """A commit downloads nothing: every hook runs a tool of .venv."""
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [each["repo"] for each in repos] == ["local"]
    assert {hook["entry"].split("/")[0] for each in repos for hook in each["hooks"]} == {".venv"}


def test_compose_starts_the_processes_that_up_starts() -> None:
    """The containers run the application as worker, beat and Flower, beside a broker that forgets nothing.

    A worker has a number of processes for which its limits have room, whatever the number of cores.
    """
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    roles = {name: each["command"][:4] for name, each in services.items() if "celery" in each.get("command", ())}
    programs = {"worker": "worker", "sweeper": "worker", "beat": "beat", "flower": "flower"}
    assert roles == {role: ["celery", "-A", "worker.app", program] for role, program in programs.items()}
    served = [services[role]["command"][6:] for role in ("worker", "sweeper")]
    assert served == [
        ["--queues", "interactive,transfer,celery", "--concurrency", "4"],
        ["--queues", "sweep", "--concurrency", "1"],
    ]
    broker = " ".join(services["broker"]["command"])
    assert "--appendonly yes" in broker
    assert "--maxmemory-policy noeviction" in broker


def test_compose_serves_every_queue() -> None:
    """Each queue has a worker, Celery's default one included: a message that names no queue is a job too."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    served = {name for role in ("worker", "sweeper") for name in services[role]["command"][7].split(",")}
    assert served == {"interactive", "transfer", "sweep", "celery"}
    assert services["worker"]["environment"]["ZOT_SERVE_DEFAULT_QUEUE"] == "true"


def test_compose_gives_containers_no_rights_beyond_their_work() -> None:
    """No container has capabilities, new privileges, a writable root or unbounded memory; Flower sees no artifact."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for service in services.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"mem_limit", "pids_limit"} <= service.keys()
    assert services["flower"]["volumes"] == ["flower:/data"]
    assert {"ZOT_CATALOGUE", "AWS_ACCESS_KEY_ID"} & services["flower"]["environment"].keys() == set()
    wanted = {"AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_SECRET"}
    assert all(wanted <= services[role]["environment"].keys() for role in ("worker", "sweeper"))


def test_compose_opens_nothing_beyond_loopback() -> None:
    """Every service is published to the host's loopback by default; broker and Flower need a password."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {
        "broker": ["${ZOT_BROKER_ADDRESS:-127.0.0.1}:6379:6379"],
        "flower": ["127.0.0.1:5555:5555"],
        "gateway": ["127.0.0.1:8484:8484"],
        "metrics": ["127.0.0.1:9469:9469"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
        "s3": ["127.0.0.1:9000:9000"],
        "gcs": ["127.0.0.1:4443:4443"],
        "azure": ["127.0.0.1:10000:10000"],
    }
    assert services["broker"]["environment"]["PASSWORD"].startswith("${ZOT_BROKER_PASSWORD:?")
    assert services["flower"]["environment"]["FLOWER_BASIC_AUTH"].startswith("${FLOWER_BASIC_AUTH:?")


def test_every_promise_names_tests_that_exist() -> None:
    """Each of the eleven promises is followed by at least one test, and every test that is named is there."""
    there = {name for name, _ in _tests()}
    promises = re.split(r"^## ", (ROOT / "docs" / "promises.md").read_text(), flags=re.MULTILINE)[1:]
    named = [re.findall(r"^- `(tests/\S+)`", promise, flags=re.MULTILINE) for promise in promises]
    assert len(named) == 11
    assert all(named)
    assert [test for tests in named for test in tests if test not in there] == []


def test_every_test_that_the_documentation_names_exists() -> None:
    """A page of docs/ that names a test in full names one that exists."""
    there = {name for name, _ in _tests()}
    pages = {page: page.read_text() for page in (ROOT / "docs").rglob("*.md")}
    named = {(page.name, test) for page, text in pages.items() for test in re.findall(r"`(tests/\S+::\w+)`", text)}
    assert named
    assert {(page, test) for page, test in named if test not in there} == set()


def test_every_link_in_the_documentation_leads_to_a_file() -> None:
    """A relative link in Markdown names a file of this repository."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *(ROOT / folder / "README.md" for folder in CODE)]
    links = [(page, link) for page in pages if page.is_file() for link in LINK.findall(page.read_text())]
    assert links
    assert [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_arrows_run_one_way() -> None:
    """Tasks know the worker, the worker knows the contract, and never the other way round."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
