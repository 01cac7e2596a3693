"""Cancel the waiting jobs that are to be cancelled: `python -m worker.cancel_waiting_jobs`, which a worker starts."""

import logging

from worker.app import app
from worker.catalogue import CatalogueError
from worker.context import current
from worker.jobs.cancel_jobs import cancel_waiting_jobs
from worker.jobs.task import clean_up

logger = logging.getLogger(__name__)


def main() -> None:
    """Cancel them; what cannot be cancelled now stays requested, and `sweep.recover` does it."""
    app.log.setup(loglevel=logging.INFO)
    app.loader.import_default_modules()  # it registers what the tasks do at the end of their jobs
    try:
        cancel_waiting_jobs(current(), app, clean_up)
    except CatalogueError as error:
        logger.warning("waiting jobs are cancelled by the next recovery: %s", error)


if __name__ == "__main__":
    main()
