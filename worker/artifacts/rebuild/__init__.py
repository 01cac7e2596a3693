"""Rebuild the catalogue from the stores, and keep in them what no object says: tombstones and named companions."""
