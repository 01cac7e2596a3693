"""Flower as this program starts it: its authentication, its history, and what it shows of a job."""
