"""Metrics for Prometheus: the totals of all workers in Redis, and the exporter that answers outside of the tasks."""
