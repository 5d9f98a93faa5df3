"""Claims about what a too simple posterior does, and about gradients of bits; a part of ``CLAIMS``."""

from __future__ import annotations

from itertools import pairwise

from amortized_bayes.presenting.claim import Claim
from amortized_bayes.presenting.claim_tests import Less, Signed, Term, Test
from amortized_bayes.types import Factor

__all__ = ["APPROXIMATION_CLAIMS"]

SHEKHOVTSOV = "Shekhovtsov, Schlesinger & Flach (ICLR 2022)"
DISARM = "Dong, Mnih & Tucker (NeurIPS 2020)"
BITS = (8, 16, 32, 64)


def _mixture(metric: str, scale: float = 1.0, **more: Factor) -> Term:
    return Term(metric, {"skew": 1.0, "scale": scale, **more})


def _bent(text: str, published: str, *tests: Test) -> Claim:
    return Claim(text, SHEKHOVTSOV, "gmm", {"gaussian-mixture": published}, tests)


def _hashed(metric: str, bits: int, **more: Factor) -> Term:
    return Term(metric, {"bits": bits, "decoder_layers": 0, "encoder": "linear", "input": "counts", **more})


def _gradient(bits: int, estimator: str) -> Term:
    return _hashed("gradient_variance", bits, estimator=estimator)


APPROXIMATION_CLAIMS = (
    _bent(
        "Joint training raises the ELBO and moves the decoder away from the truth",
        "ELBO -3.37 to -3.31; the likelihood was not printed",
        Signed(_mixture("exact_elbo_gained", stage="joint", split="test"), words="ELBO gained on new points"),
        Signed(_mixture("exact_log_p_lost", stage="joint", split="test"), words="log p(x) lost on new points"),
    ),
    _bent(
        "Joint training bends the decoder until its posterior fits the encoder's family",
        "drawn, no number printed",
        Less(
            _mixture("exact_approximation_gap", stage="joint", split="test"),
            _mixture("exact_approximation_gap", stage="encoder", split="test"),
        ),
    ),
    _bent(
        "The decoder leaves the truth because the family is too simple, not because points are few",
        "proved",
        Less(
            _mixture("exact_log_p_lost", decoder="maximum likelihood", split="population"),
            _mixture("exact_log_p_lost", decoder="joint optimum", split="population"),
        ),
    ),
    _bent(
        "With the scale of 0.01 that the text prints, the optimum of joint training has a higher ELBO than the truth",
        "printed; the code has 1",
        Signed(
            _mixture("exact_elbo_gained", 0.01, decoder="joint optimum", split="population"),
            words="ELBO gained on new points",
        ),
    ),
    Claim(
        "More bits lower the negative ELBO of new documents",
        SHEKHOVTSOV,
        "semantic-hashing",
        {"20newsgroups": "423, 409, 396, 392 with 8, 16, 32, 64 bits (own code length subtracted)"},
        tuple(
            Signed(_hashed("document_nelbo_saved", more, split="test"), words=f"saved by {more} bits over {fewer}")
            for fewer, more in pairwise(BITS)
        ),
    ),
    Claim(
        "DisARM's gradients vary less than ARM's",
        DISARM,
        "semantic-hashing",
        {"20newsgroups": "not tried; proved"},
        tuple(Less(_gradient(bits, "disarm"), _gradient(bits, "arm")) for bits in BITS),
    ),
    Claim(
        "DisARM's gradients vary less than REINFORCE's with as many draws",
        DISARM,
        "semantic-hashing",
        {"20newsgroups": "not tried; shown on images"},
        tuple(Less(_gradient(bits, "disarm"), _gradient(bits, "reinforce")) for bits in BITS),
    ),
)
"""Claims of one paper, which stand together on the page."""
