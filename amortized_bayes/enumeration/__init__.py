r"""Discrete latents inside the plate over data points, enumerated by Pyro and summed out point by point.

A site that the model marks with ``infer={"enumerate": "parallel"}`` (``pyro.infer.config_enumerate`` marks all) and the
guide does not sample is run with all its values at once, in a dimension left of all plates. Of every data point the
seam then sees the marginal model,

.. math::
    \log p(x_b, z_b) = \log \sum_{y_b} p(y_b)\, p(z_b \mid y_b)\, p(x_b \mid y_b, z_b).

Its log prior is the same sum without the observed sites, its log likelihood the rest.

Where the *guide* marks sites too, the ELBO's expectation over them is exact. An importance weight has no expectation in
it: there the guide draws them.
"""

from amortized_bayes.enumeration.expectation import Expectation
from amortized_bayes.enumeration.marks import is_enumerated, is_marked, without
from amortized_bayes.enumeration.summing import SummedOut, sum_out
from amortized_bayes.enumeration.tracing import enumerated_trace

__all__ = ["Expectation", "SummedOut", "enumerated_trace", "is_enumerated", "is_marked", "sum_out", "without"]
