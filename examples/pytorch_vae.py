"""A trained VAE in plain PyTorch, diagnosed without a line of Pyro: is it the encoder, or the Gaussian?

python examples/pytorch_vae.py report.html
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amortized_bayes as ab

LATENT_DIM = 4


def networks(width: int) -> tuple[nn.Module, nn.Module]:
    """An encoder to mean and log variance, and a decoder to logits."""
    encoder = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 2 * LATENT_DIM))
    decoder = nn.Sequential(nn.Linear(LATENT_DIM, 64), nn.ReLU(), nn.Linear(64, 64))
    return encoder, decoder


def train(encoder: nn.Module, decoder: nn.Module, x: Tensor, steps: int = 500) -> None:
    """The loop that every VAE tutorial has."""
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-3)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (100,))]
        mean, log_variance = encoder(batch).chunk(2, -1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        missed = F.binary_cross_entropy_with_logits(decoder(z), batch, reduction="none").sum(-1)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1)
        optimizer.zero_grad()
        (missed + kl).mean().backward()
        optimizer.step()


def main() -> None:
    """Train with a narrow and a wide encoder, and say what each loses."""
    digits = ab.load_dataset("digits", num_train=1000)
    x = torch.from_numpy(digits.train.pixels > 7).float()
    for width in (3, 64):
        torch.manual_seed(0)
        encoder, decoder = networks(width)
        train(encoder, decoder, x)
        pair = ab.vae(
            encoder, decoder, "bernoulli", latent_dim=LATENT_DIM, encoder_gives="log_variance", decoder_gives="logits"
        )
        report = ab.diagnose(*pair, x[:50], progress=False)
        print(f"encoder of width {width}: {report.verdict}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(report.to_html(), encoding="utf-8")


if __name__ == "__main__":
    main()
