"""How large objects move: multipart upload, resumable read, server-side copy."""
