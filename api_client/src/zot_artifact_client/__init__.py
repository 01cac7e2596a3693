"""Enqueue artifact jobs from other services: upload, replicate, verify, delete."""
