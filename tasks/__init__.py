"""What the worker does: one verb a file, each a plain function with a thin Celery task below it."""
