"""What Flower shows of a job: its kind, its artifact, its progress, and its verdict in place of a green SUCCESS."""

import ast
import json
from collections.abc import Mapping
from typing import Any

from celery import Celery
from celery.states import FAILURE, STARTED, SUCCESS

from worker.limits.shared_redis import SharedRedis, result_backend
from zot_artifact_client.contract import PROGRESS_STATE, TASKS
from zot_artifact_client.text_escaping import bounded

_SHOWN = 200
_MOST_RESULT = 1 << 20
_BAD = ("corrupt", "size_mismatch", "missing", "unreadable", "unverifiable", "archived", "failed")
"""The outcomes that are no success, the worst first."""
BAD_STATES = frozenset(name.upper() for name in _BAD)
"""The states of jobs that ended and whose outcome is no success."""
_ARTIFACT = ("bucket", "key", "version", "size", "sha256")


class TaskFormatter:
    """Formats tasks for Flower's pages. It reads the results of ended jobs, because an event has only their beginning.

    While Redis does not answer, the result is what the event has.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._shared = SharedRedis(lambda: result_backend(app))

    def format(self, task: Any) -> Any:
        """Return a task, a copy that may be changed, as the pages show it."""
        if task.state == PROGRESS_STATE:  # reported by an event of ours; the job runs, and can be cancelled
            task.state = STARTED
        if task.state == SUCCESS and task.name in TASKS:
            result = self._result(task.uuid) or _literal(task.result)
            if isinstance(result, dict):
                task.state, task.result = _verdict(result), summary(result)
        elif task.state == FAILURE and task.exception:
            task.result = _message(task.exception)
        spec = TASKS.get(task.name)
        if spec is not None:
            task.name = spec.kind
            task.kwargs = arguments(task.kwargs)
        return task

    def state_of(self, task: Any) -> str:
        """Return the state of a task as the pages show it."""
        if task.state == PROGRESS_STATE:
            return str(STARTED)
        if task.state != SUCCESS or task.name not in TASKS:
            return str(task.state)
        result = _literal(task.result)
        found = result if isinstance(result, dict) else self._result(task.uuid)
        return _verdict(found) if found is not None else SUCCESS

    def _result(self, uuid: str) -> Mapping[str, Any] | None:
        key = self._app.backend.get_key_for_task(uuid)
        stored: Any = self._shared.ask(lambda client: client.get(key), lambda: None)
        try:
            found = json.loads(stored)["result"] if stored and len(stored) <= _MOST_RESULT else None
        except (ValueError, LookupError, TypeError):
            return None
        return found if isinstance(found, dict) else None


def arguments(shown: object) -> str:
    """Return the arguments of a request in a few words: its artifact first, then what else it names."""
    request = _literal(shown)
    if not isinstance(request, dict):
        return bounded(shown, _SHOWN) if isinstance(shown, str) else ""
    path = "/".join(str(request[name]) for name in ("bucket", "key") if request.get(name))
    rest = [
        f"{name}={_short(value)}"
        for name, value in request.items()
        if name not in {"bucket", "key", "schema_version"} and value not in (None, False, [], (), {}, "")
    ]
    return bounded(" ".join([*([path] if path else []), *rest]), _SHOWN)


def summary(result: Mapping[str, Any]) -> str:
    """Return a result in a few words: the verdict or outcome of each copy, or the counts."""
    copies = result.get("copies")
    if isinstance(copies, list):
        told = [f"{each.get('store')} {_outcome(each)}" for each in copies if isinstance(each, dict)]
        return bounded(", ".join(told), _SHOWN)
    rest = [
        f"{name} {_short(value)}"
        for name, value in result.items()
        if name not in _ARTIFACT and value not in (None, False, [], {}, "", 0)
    ]
    return bounded(", ".join(rest) or "nothing to do", _SHOWN)


def _verdict(result: Mapping[str, Any]) -> str:
    """Return SUCCESS, or the worst outcome that is none, as a state."""
    copies, outcomes = result.get("copies"), result.get("outcomes")
    found = {_outcome(each) for each in copies if isinstance(each, dict)} if isinstance(copies, list) else set()
    if isinstance(outcomes, dict):
        found |= {name for name, count in outcomes.items() if count}
    worst = next((name for name in _BAD if name in found), None)
    return worst.upper() if worst else SUCCESS


def _literal(shown: object) -> object:
    """Return the value that an event has as text, or None if it is none: Celery cuts long ones."""
    try:
        return ast.literal_eval(shown) if isinstance(shown, str) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _outcome(copy: Mapping[str, Any]) -> str:
    return str(copy.get("verdict") or copy.get("outcome"))


def _message(exception: str) -> str:
    """Return the message of `JobFailed('message', …)` as an event has it."""
    try:
        call = ast.parse(exception, mode="eval").body
        first = call.args[0] if isinstance(call, ast.Call) and call.args else None
        return bounded(first.value if isinstance(first, ast.Constant) else exception, _SHOWN)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return bounded(exception, _SHOWN)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)
