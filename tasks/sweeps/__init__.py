"""The periodic tasks, one file each."""
