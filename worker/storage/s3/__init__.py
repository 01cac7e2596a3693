"""Amazon S3 and everything that speaks S3."""
