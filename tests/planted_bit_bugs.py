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
        "a step that is accepted without the way back",
        "evaluation/bit_flips.py",
        "log_ratio + back - _log_proposed(odds, moved)",
        "log_ratio - _log_proposed(odds, moved)",
        "test_bit_chains.py::test_a_transition_keeps_the_density_and_is_reversible",
    ),
    Mutant(
        "a step that is always accepted",
        "evaluation/bit_flips.py",
        "uniform_(generator=generator) < acceptance",
        "uniform_(generator=generator) < 1",
        "test_bit_chains.py::test_both_walks_have_the_evidence_as_their_mean",
    ),
    Mutant(
        "a walk back that is a step ahead of its temperatures",
        "evaluation/hmc.py",
        "place = step if backwards else step + 1",
        "place = step + 1",
        "test_bit_chains.py::test_both_walks_have_the_evidence_as_their_mean",
    ),
    Mutant(
        "codes read from the wrong end",
        "joint/bits.py",
        "torch.arange(z.shape[-1] - 1, -1, -1, device=z.device)",
        "torch.arange(z.shape[-1], device=z.device)",
        "test_bit_search.py::test_codes_are_read_as_they_are_written",
    ),
    Mutant(
        "independence that is tried at two codes alone",
        "joint/bits.py",
        "NUM_PATTERNS = 8",
        "NUM_PATTERNS = 0",
        "test_diagnose_bits.py::test_bits_that_follow_a_difference_are_dependent",
    ),
    Mutant(
        "mean field that follows half of the bits alone",
        "inference/mean_field.py",
        "torch.cat([found, rest], -1)",
        "torch.cat([first, rest], -1)",
        "test_bit_search.py::test_two_bits_have_the_optimum_that_is_known",
    ),
    Mutant(
        "differences of bits that are on with the sign of those that are off",
        "inference/bit_search.py",
        "(2 * z[..., bits] - 1) * (base - moved)",
        "(base - moved)",
        "test_bit_search.py::test_sampled_differences_come_to_the_optimum",
    ),
    Mutant(
        "a residual that counts the noise of its draws",
        "inference/bit_search.py",
        "- (weight * variance / count).sum(-1)",
        "+ 0 * (weight * variance / count).sum(-1)",
        "test_bit_search.py::test_the_residual_is_what_summing_gives",
    ),
    Mutant(
        "a fit that climbs by the value of bits, not by their gradient",
        "inference/svi.py",
        "for s in (False, True))",
        "for s in (False, False))",
        "test_bernoulli_elbo.py::test_pyros_svi_has_the_gradients_of_a_fit_times_the_points",
    ),
)
