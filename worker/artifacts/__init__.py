"""The domain: copies of an artifact, several stores, sources and key lists."""
