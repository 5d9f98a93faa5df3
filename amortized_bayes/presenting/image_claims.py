"""Claims about images of a generator that is trained jointly with an encoder."""

from __future__ import annotations

from amortized_bayes.presenting.approximation_claims import SHEKHOVTSOV
from amortized_bayes.presenting.claim import Claim
from amortized_bayes.presenting.claim_tests import Less, Term

__all__ = ["IMAGE_CLAIMS"]


def _stage(metric: str, stage: str, **more: str) -> Term:
    return Term(metric, {"stage": stage, **more})


IMAGE_CLAIMS = (
    Claim(
        "Joint training raises the ELBO of images drawn from a known generator",
        SHEKHOVTSOV,
        "celeba",
        {"celeba": "ELBO -19072.7 to 5137.2", "fashion-mnist": "not tried"},
        (Less(_stage("elbo", "encoder", split="test"), _stage("elbo", "joint", split="test")),),
    ),
    Claim(
        "Joint training moves re-decoded images away from those of the truth",
        SHEKHOVTSOV,
        "celeba",
        {
            "celeba": "FID 1.311 to 71.852, with noise on one set alone and batch norm in training mode",
            "fashion-mnist": "not tried",
        },
        (
            Less(
                _stage("frechet_classifier", "encoder", set="re-decoded"),
                _stage("frechet_classifier", "joint", set="re-decoded"),
            ),
        ),
    ),
)
"""Claims that ``celeba`` decides."""
