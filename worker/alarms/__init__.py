"""Alarms: tell what changed in the findings, by webhook, e-mail and log."""
