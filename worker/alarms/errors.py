"""Why an alarm was not delivered."""


class AlarmUndelivered(Exception):
    """A channel did not accept a digest. The message holds no secret."""
