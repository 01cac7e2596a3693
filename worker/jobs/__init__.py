"""What makes a Celery task a durable job: the ledger, the lease, progress, cancelling, retries."""
