"""Amortized variational inference: what does it cost to share the inference?"""
