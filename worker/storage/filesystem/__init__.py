"""Store objects as files in a directory."""
