"""What `zot-artifacts up` runs: broker, worker, beat and Flower, as child processes on loopback."""
