"""SHA-256: readers that verify, manifests of chunk digests, and verdicts."""
