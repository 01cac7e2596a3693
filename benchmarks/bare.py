"""The yardstick of the latency: a Celery application that has nothing to do and nothing configured."""

import os

from celery import Celery

BROKER = "BENCH_BROKER"
NOOP = "benchmarks.bare.noop"


def make_app(broker: str | None, *, results: bool = True) -> Celery:
    """Return the application, as its worker and its caller both have it."""
    app = Celery("bare", broker=broker, backend=broker if results else None, set_as_current=False)
    app.conf.update(task_serializer="json", result_serializer="json", accept_content=["json"])
    return app


app = make_app(os.environ.get(BROKER))


@app.task(name=NOOP)
def noop() -> None:
    """Do nothing."""
