"""Set Flower up before its command runs: columns, history, and authentication on every route."""

from typing import Any

from celery import Celery

from worker.flower.authentication import has_passwords
from worker.flower.tasks import TaskFormatter
from worker.settings import Settings

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
    options.db = str(settings.home / "run" / "flower-history")
    options.state_save_interval = _SAVE_EVERY
    options.purge_offline_workers = _FORGET_WORKERS
    formatter = TaskFormatter(app)
    options.format_task = lambda task: formatter.format(task)  # noqa: PLW0108 - the option takes no method
    _guard_every_route()


def _guard_every_route() -> None:
    """Ask for the password on every route: Flower asks on none of /metrics, /healthcheck and /static."""
    from flower.urls import settings
    from flower.views import BaseHandler
    from flower.views.monitor import Healthcheck, Metrics
    from tornado.web import HTTPError, StaticFileHandler

    before = BaseHandler.prepare

    def prepare(handler: Any) -> Any:
        options = handler.application.options
        monitored = isinstance(handler, Healthcheck | Metrics)
        if not (options.basic_auth or options.auth) or not has_passwords(options.basic_auth or ()):
            raise HTTPError(401)  # its file of options may set none, or a user without a password
        if (options.basic_auth or monitored) and not handler.current_user:
            raise HTTPError(401)
        return before(handler)

    class GuardedFiles(BaseHandler, StaticFileHandler):  # type: ignore[misc]  # Flower has no types
        def data_received(self, chunk: bytes) -> None:
            """Take no body."""

    BaseHandler.prepare = prepare
    settings["static_handler_class"] = GuardedFiles  # Tornado's own route of files comes first
