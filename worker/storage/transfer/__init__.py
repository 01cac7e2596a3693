"""Move large objects: multipart upload, resumable read, server-side copy."""
