r"""The linear-Gaussian model, whose posterior and evidence are known: what estimators are tested against.

.. math::
    z \sim N(0, I_D), \qquad x \mid z \sim N(W z + b, s^2 I_P), \qquad
    z \mid x \sim N(\Lambda^{-1} W^T (x - b) / s^2, \Lambda^{-1}), \quad \Lambda = I + W^T W / s^2 .

Formulae: Bishop, *Pattern Recognition and Machine Learning*, 2006, section 12.2.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from amortized_bayes.limits import Natural, Positive, limited
from amortized_bayes.registration import Registered

__all__ = ["LinearGaussian"]


class LinearGaussian(Registered):
    """Probabilistic PCA as a Pyro program over the plate ``data``, with sites ``z`` (D,) and ``x`` (P,).

    Args:
        weight: W, (P, D).
        bias: b, (P,).
        scale: s, standard deviation of the observations.
        num_data: N, the size of the plate when a batch is given by ``index``.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a scale of 0 or less.

    Example:
        >>> model = LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> model.posterior(torch.zeros(4, 3)).mean.shape
        torch.Size([4, 2])
    """

    weight: Tensor
    bias: Tensor

    @limited
    def __init__(self, weight: Tensor, bias: Tensor, scale: Positive, num_data: Natural | None = None) -> None:
        super().__init__()
        if weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"expected weight (P, D) and bias (P,), got {tuple(weight.shape)} and {tuple(bias.shape)}")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError("expected finite weight and bias, got nan or inf in them")
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.scale = scale
        self.num_data = num_data

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Sample (or score) the model on data ``x`` of shape (B, P), the points ``index`` (B,) of all N."""
        zeros = self.weight.new_zeros(self.weight.shape[1])
        size = len(x) if index is None or self.num_data is None else self.num_data
        with pyro.plate("data", size, subsample=index):
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            mean = z @ self.weight.T + self.bias
            return pyro.sample("x", dist.Normal(mean, torch.full_like(mean, self.scale)).to_event(1), obs=x)

    def posterior_precision(self) -> Tensor:
        """Precision matrix of p(z|x), the same for all x, (D, D)."""
        return torch.eye(self.weight.shape[1]).to(self.weight) + self.weight.T @ self.weight / self.scale**2

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Exact p(z|x) of each point, batch shape (B,), event shape (D,)."""
        precision = self.posterior_precision()
        mean = torch.linalg.solve(precision, self.weight.T @ (x - self.bias).T / self.scale**2).T
        return MultivariateNormal(mean, precision_matrix=precision.expand(len(x), *precision.shape))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) of each point in nats, (B,)."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.weight)).to(self.weight)
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def best_factorized_elbo(self, x: Tensor) -> Tensor:
        r"""ELBO of the best factorized Gaussian, (B,): log p(x) - ½(Σ log Λ_ii - log|Λ|)."""
        precision = self.posterior_precision()
        gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
        return self.log_evidence(x) - gap

    def best_constant_elbo(self, x: Tensor) -> Tensor:
        r"""ELBO per point, (B,), of the factorized Gaussian that is best when all points share it.

        Averaged over points, log p(x, z) is quadratic in z with curvature Λ, and the best mean is the mean of the
        posterior means m_n. A point then loses, beside the factorized gap, ½ (m - m_n)^T Λ (m - m_n).
        """
        offset = self.posterior(x).mean - self.posterior(x).mean.mean(0)
        return self.best_factorized_elbo(x) - 0.5 * (offset @ self.posterior_precision() * offset).sum(-1)
