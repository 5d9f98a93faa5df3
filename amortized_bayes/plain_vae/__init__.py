"""A variational autoencoder in plain PyTorch, taken as a model and a guide."""

from amortized_bayes.plain_vae.pair import VAE, vae

__all__ = ["VAE", "vae"]
