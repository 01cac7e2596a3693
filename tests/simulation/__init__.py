"""Months of sweeps on a virtual clock."""
