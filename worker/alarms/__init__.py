"""Alarms: send what changed in the findings, as one message (a digest), by webhook, e-mail and log."""
