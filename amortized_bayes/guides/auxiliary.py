r"""Amortized flows with auxiliary variables.

.. math::
    z_0 \sim q(z_0 \mid x), \quad v_0 \sim q(v_0 \mid z_0), \quad (z_T, v_T) = f(z_0, v_0), \qquad
    z' = z \circ \sigma_1(v) + \mu_1(v), \quad v' = v \circ \sigma_2(z') + \mu_2(z'),

.. math::
    \log p(x) \ge E\left[\log p(x, z_T) + \log r(v_T \mid x, z_T) - \log q(z_0 \mid x) - \log q(v_0 \mid z_0)
    + \log \left| \det \frac{\partial (z_T, v_T)}{\partial (z_0, v_0)} \right| \right]

(Cremer, Li & Duvenaud, 2018, after Ranganath, Tran & Blei and Maaloe et al., 2016). What q(z_T|x) is remains unknown;
r(v|x, z) stands in for q(v|x, z), and the bound loses the divergence between the two. Both, like q(z_0|x), are
factorized Gaussians. The terms enter the guide's log density as follows: z_0 and v_0 are auxiliary sites, the reverse
model and the determinant one factor for each point, and the sites of the model point masses.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortized_bayes.guides.flow import AUXILIARY, Encoded, EncodedGuide, pass_on
from amortized_bayes.guides.flow_family import Conditioner, Flow, FlowSettings
from amortized_bayes.guides.transforms import softclip
from amortized_bayes.types import LatentSite

__all__ = ["AuxiliaryFlow"]

BASE_NAME, AUXILIARY_NAME, REVERSE_NAME = "_base", "_auxiliary", "_reverse"
"""Sites of z_0 and v_0, and the factor -log r - log |det|."""
LOG_SCALE_RANGE = 8.0
"""Bound of the log scales of v, in nats."""


class AuxiliaryFlow(EncodedGuide):
    """An auxiliary flow for the local sites of each data point, with D auxiliary variables v.

    The couplings are those of RealNVP on (v, z), halves of one vector that change in turn. At the start they are near
    the identity and q(v_0|z_0) = r(v_T|x, z_T) = N(0, I), so that the bound is near that of the other guides' Gaussian.

    Args:
        sites: local latent sites of the model.
        num_data: N.
        observed: size P of one data point, flattened, of which r(v|x, z) reads all.
        settings: family ``auxiliary`` or ``auxiliary-contextual`` (couplings that read a context), ``num_flows`` pairs
            of couplings, and the widths of all networks but the encoder.
        width: k, width of each hidden layer of the encoder.
        depth: number of its hidden layers; 0 makes it linear.
        encoder: a network ``(B, ...) -> (B, 2 D + C)`` to use instead, C being ``settings.context_dim``; ``width`` and
            ``depth`` are then ignored.
        shared: guide of the shared sites.
        plate: name of the plate over data points.

    Raises:
        ValueError: another family, or sizes out of their range.

    Example:
        >>> import torch
        >>> import amortized_bayes as ab
        >>> model = ab.LinearGaussian(torch.ones(3, 2), torch.zeros(3), 0.5)
        >>> x = torch.zeros(4, 3)
        >>> sites = ab.latent_sites(model, x).local
        >>> guide = AuxiliaryFlow(sites, num_data=4, observed=3, width=8)
        >>> ab.log_weights(model, guide, x, num_particles=5).local.shape
        torch.Size([1, 5, 4])
    """

    def __init__(
        self,
        sites: Sequence[LatentSite],
        num_data: int,
        observed: int,
        settings: FlowSettings | None = None,
        width: int = 64,
        depth: int = 1,
        *,
        encoder: nn.Module | None = None,
        shared: nn.Module | None = None,
        plate: str = "data",
    ) -> None:
        settings = settings or FlowSettings(AUXILIARY, num_flows=2)
        if settings.layer != AUXILIARY:
            raise ValueError(f"expected a family {AUXILIARY!r} or '{AUXILIARY}-contextual', got {settings.family!r}")
        super().__init__(sites, num_data, observed, settings, width, depth, encoder, shared, plate)
        self.observed = observed
        start = torch.zeros(2 * self.latent_dim)
        self.flow = Flow(2 * self.latent_dim, settings)
        self.forward_model = Conditioner(self.latent_dim, settings.hidden, start)
        self.reverse_model = Conditioner(observed + self.latent_dim, settings.hidden, start)

    def sample(self, x: Tensor, encoded: Encoded) -> None:
        """Sample every local site, inside the plate."""
        if x[0].numel() != self.observed:
            raise ValueError(f"expected data points of size {self.observed}, which r(v|x, z) reads, got {x[0].numel()}")
        base = dist.Normal(encoded.loc, encoded.log_scale.exp()).to_event(1)
        z = pyro.sample(BASE_NAME, base, infer={"is_auxiliary": True})
        v = pyro.sample(AUXILIARY_NAME, _gaussian(self.forward_model(z)), infer={"is_auxiliary": True})
        joint, log_det = torch.cat([v, z], -1), z.new_zeros(len(z))
        for transform in self.flow(encoded.context):
            moved = transform(joint)
            log_det = log_det + transform.log_abs_det_jacobian(joint, moved)
            joint = moved
        v, z = joint.chunk(2, -1)
        reverse = _gaussian(self.reverse_model(x.flatten(1), z)).log_prob(v)
        pyro.factor(REVERSE_NAME, -reverse - log_det, has_rsample=True)
        pass_on(self.sites, self.sizes, z)


def _gaussian(numbers: Tensor) -> dist.TorchDistribution:
    """Factorized Gaussian of locations and log scales ``(B, 2 D)``, batch shape (B,)."""
    loc, log_scale = numbers.chunk(2, -1)
    return dist.Normal(loc, softclip(log_scale, LOG_SCALE_RANGE).exp()).to_event(1)
