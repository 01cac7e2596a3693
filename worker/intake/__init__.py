"""What may come in from the broker: message filter, message rules, rejected messages."""
