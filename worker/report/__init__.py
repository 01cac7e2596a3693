"""What is open, and the report on it: facts of the catalogue, the broker, the workers and the stores in a document."""
