"""The verification log outside the catalogue: its head in the stores, its archives, and the signature of a head."""
