"""Admission control: pauses, circuit breaker, concurrency and bandwidth of each store, shared by the fleet in Redis."""
