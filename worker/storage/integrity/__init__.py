"""Verify bytes by SHA-256: verifying readers, manifests of chunk digests, verdicts."""
