"""What cleanup removes: uploads, writes and sources that jobs left when they were killed."""
