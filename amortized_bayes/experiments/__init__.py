"""Experiments: each a configuration, a grid of fits, and a run that yields rows."""
