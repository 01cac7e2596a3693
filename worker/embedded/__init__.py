"""Run broker, workers, beat and Flower as child processes on loopback, for `zot-artifacts up`."""
