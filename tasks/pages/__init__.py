"""Pages: one verb done to many objects in one job, one file per verb."""
