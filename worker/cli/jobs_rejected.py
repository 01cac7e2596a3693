"""List the rejected messages, which arrived at the broker and are no valid requests."""

from worker.cli.output import print_json, print_table, say
from worker.intake.rejected import describe_counts, open_rejected
from worker.readable import size
from worker.settings import Settings


def list_rejected(settings: Settings, *, limit: int, as_json: bool) -> None:
    """Print the rejected messages, the latest first, and their number for each reason."""
    with open_rejected(settings) as refused:
        counts = refused.counts() if refused else {}
        latest = refused.latest(limit) if refused else []
    if as_json:
        print_json({"counts": counts, "messages": [message.document() for message in latest]})
        return
    rows = [(m.at, m.queue, m.reason, size(m.size), m.id, m.task, m.message) for m in latest]
    columns = ("rejected", "queue", "reason", "size", "job", "task", "message")
    print_table(columns, rows, empty="no rejected messages", flexible=("job", "task", "message"))
    if latest:
        say(f"{describe_counts(counts)} in all")
