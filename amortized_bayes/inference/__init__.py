"""Inference: fitting guides, and the gradients and optimisers that it takes."""
