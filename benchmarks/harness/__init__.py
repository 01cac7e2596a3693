"""What all measurements share: the machine, the servers, the tools beside ours, and the table."""
