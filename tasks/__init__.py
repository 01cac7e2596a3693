"""What the worker does: one verb, one file; a plain function, and under it a thin Celery task."""
