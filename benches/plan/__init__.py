"""Benches of `nagaya plan`."""
