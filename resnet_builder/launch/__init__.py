"""Launching of several runs: the seeds of a spec, and sweeps over the keys of a spec."""
