"""Bugs in gradients of bits, a part of the table of ``planted_bugs.py``."""

from mutant import Mutant

__all__ = ["OF_BITS"]

OF_BITS = (
    Mutant(
        "ARM's noise not centred",
        "inference/bit_gradients.py",
        "(noise - 0.5)",
        "noise",
        "test_bernoulli_elbo.py::test_disarm_is_the_mean_of_arm_given_the_codes",
    ),
    Mutant(
        "DisARM without |α|",
        "inference/bit_gradients.py",
        "alpha.abs().sigmoid()",
        "alpha.sigmoid()",
        "test_bernoulli_elbo.py::test_the_mean_over_all_noise_is_the_sum_over_all_codes",
    ),
    Mutant(
        "a pair that is not antithetic",
        "inference/bit_gradients.py",
        "[1 - u < p, u < p]",
        "[torch.rand_like(u) < p, u < p]",
        "test_bernoulli_elbo.py::test_draws_average_to_the_sum_over_all_codes",
    ),
    Mutant(
        "a baseline that has the draw itself in it",
        "inference/bit_gradients.py",
        ".sum(0) / (len(f) - 1)",
        ".sum(0) / len(f)",
        "test_bernoulli_elbo.py::test_draws_average_to_the_sum_over_all_codes",
    ),
    Mutant(
        "log q with a gradient of its own",
        "inference/bernoulli_elbo.py",
        "fn.logits.detach()",
        "fn.logits",
        "test_bernoulli_elbo.py::test_at_the_exact_posterior_no_draw_has_a_gradient",
    ),
    Mutant(
        "a fit that climbs by the value of bits, not by their gradient",
        "inference/svi.py",
        "for s in (False, True))",
        "for s in (False, False))",
        "test_bernoulli_elbo.py::test_pyros_svi_has_the_gradients_of_a_fit_times_the_points",
    ),
)
