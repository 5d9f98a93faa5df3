"""Estimates for a fitted guide: bounds on the log evidence, and errors of predictions."""
