"""Set Flower up before its command runs: columns, history, and authentication on every route."""

import logging
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any

from celery import Celery
from celery.states import FAILURE

from worker import clock
from worker.flower.require_authentication import has_passwords
from worker.flower.tasks import BAD_STATES, TaskFormatter
from worker.server_certificate import NO_PAIR, is_chain_with_key, out_of_date
from worker.settings import Settings

logger = logging.getLogger(__name__)

_MOST_TASKS = 10_000
_SAVE_EVERY = 300_000
"""Milliseconds between two writes of the history, which take Flower's only thread for a moment."""
_FORGET_WORKERS = 86_400


def set_up(app: Celery, settings: Settings) -> None:
    """Set the defaults of Flower's options, which its own environment variables and arguments override.

    The history is kept in the data directory over a restart, and holds the last 10,000 tasks.
    """
    import flower.options  # noqa: F401 - it defines the options
    from flower.views.tasks import TASK_COLUMNS
    from tornado.options import options

    options.tasks_columns = "name,state,kwargs,result,uuid,received,runtime,worker"
    TASK_COLUMNS["kwargs"] = "Arguments"
    options.max_tasks = _MOST_TASKS
    options.persistent = True
    options.db = str(settings.run_dir / "flower-history")
    options.state_save_interval = _SAVE_EVERY
    options.purge_offline_workers = _FORGET_WORKERS
    formatter = TaskFormatter(app)
    options.format_task = lambda task: formatter.format(task)  # noqa: PLW0108 - the option takes no method
    _check_certificate()
    _guard_every_route()
    _show_queue_lengths()
    _find_by_shown_state(formatter)


def _check_certificate() -> None:
    """Have Flower end if it cannot serve TLS with its files: with the key of another certificate it would start."""
    from flower import command

    before = command.extract_settings

    def extract() -> None:
        before()
        files = command.settings.get("ssl_options")
        if files and not is_chain_with_key(files["certfile"], files["keyfile"]):
            names = f"--certfile {files['certfile']}, --keyfile {files['keyfile']}"
            raise SystemExit(f"zot-artifacts: flower: {names}: {NO_PAIR}")
        if files and (fault := out_of_date(files["certfile"], clock.now())):
            logger.warning("--certfile %s: %s", files["certfile"], fault)

    command.extract_settings = extract


def _show_queue_lengths() -> None:
    """Fill the column `Ready` on Redis too: Flower does not, and a narrow page shows no other length."""
    from flower.utils.broker import RedisBase

    before = RedisBase.queues

    async def queues(broker: Any, names: Iterable[str]) -> list[dict[str, Any]]:
        # A message that a worker holds is in no list any more, so that all messages of the list are ready.
        return [{**each, "messages_ready": each["messages"]} for each in await before(broker, names)]

    RedisBase.queues = queues


def _find_by_shown_state(formatter: TaskFormatter) -> None:
    """Let the filters of the page of tasks find what it shows: `Failed` also the jobs with a bad verdict."""
    from flower import events
    from flower.utils.search import TaskSearchEngine

    class ByShownState(TaskSearchEngine):  # type: ignore[misc]  # Flower has no types
        def _index(self, task_id: str, task: Any) -> None:
            shown = copy(task)
            shown.state = formatter.state_of(task)
            super()._index(task_id, shown)
            if shown.state in BAD_STATES:
                self.exact_postings["state"][FAILURE.casefold()].add(task_id)

        def remove(self, task_id: str) -> None:
            super().remove(task_id)
            self.exact_postings["state"].get(FAILURE.casefold(), set()).discard(task_id)

    events.TaskSearchEngine = ByShownState


def _guard_every_route() -> None:
    """Ask for the password on every route: Flower asks on none of /metrics, /healthcheck and /static.

    Nor does it ask on those of its API if FLOWER_UNAUTHENTICATED_API is set and its options name no user.
    """
    from flower.api import BaseApiHandler
    from flower.urls import settings
    from flower.views import BaseHandler
    from flower.views.monitor import Healthcheck, Metrics
    from tornado.web import HTTPError, StaticFileHandler

    user_of = BaseHandler.get_current_user

    def current_user(handler: Any) -> Any:
        try:
            return user_of(handler)
        except TypeError:  # it compares letters of ASCII only
            raise HTTPError(401) from None

    def guarded(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def prepare(handler: Any) -> Any:
            options = handler.application.options
            for_programs = isinstance(handler, Healthcheck | Metrics | BaseApiHandler)
            if not (options.basic_auth or options.auth) or not has_passwords(options.basic_auth or ()):
                raise HTTPError(401)  # its file of options may set none, or a user without a password
            if (options.basic_auth or for_programs) and not handler.current_user:
                raise HTTPError(401)
            return before(handler)

        return prepare

    class GuardedFiles(BaseHandler, StaticFileHandler):  # type: ignore[misc]  # Flower has no types
        def data_received(self, chunk: bytes) -> None:
            """Take no body."""

    BaseHandler.get_current_user = current_user
    for each in (BaseHandler, BaseApiHandler):  # the second one has a `prepare` that does not call the first one's
        each.prepare = guarded(each.prepare)
    settings["static_handler_class"] = GuardedFiles  # Tornado's own route of files comes first
