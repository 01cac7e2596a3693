"""Turn Celery tasks into durable jobs: lease, progress, cancellation, retry, outbox and shutdown."""
