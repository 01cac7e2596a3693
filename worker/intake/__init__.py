"""Check and delay messages from the broker, and keep a record of the rejected ones."""
