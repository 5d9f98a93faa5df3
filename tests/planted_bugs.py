"""Bugs that are easy to make and hard to see, each with the tests that must notice it: a table for ``mutants.py``."""

from __future__ import annotations

from mutant import Mutant
from planted_bit_bugs import OF_BITS

__all__ = ["MUTANTS", "Mutant"]


TEST_ERROR = "test_ladder.py::test_what_is_measured_of_new_points_is_theirs"
FROM_AVI = "test_ladder.py::test_fvi_from_avi_has_all_that_avi_had_at_the_half"
AFRESH = "test_ladder.py::test_every_budget_below_the_top_starts_afresh"
BDMC = "test_bdmc.py::test_both_bounds_close_in_on_the_exact_evidence"

MUTANTS = (
    # the loss
    Mutant(
        "shared term over B, not N",
        "inference/svi.py",
        "weights.shared.mean() / len(self.data)",
        "weights.shared.mean() / len(x)",
        "test_ladder.py::test_a_batch_has_its_share_of_the_kl_of_shared_latents_by_all_points",
    ),
    Mutant(
        "no KL warm-up of θ",
        "inference/svi.py",
        "annealing[2] * shared",
        "shared",
        "test_planted.py::test_warm_up_weighs_the_kl_of_shared_latents_too",
    ),
    Mutant(
        "no KL warm-up of θ in the sweep",
        "experiments/guide_fits.py",
        "shared_kl_weight=warm_up",
        "shared_kl_weight=None",
        "test_planted.py::test_the_sweep_fits_by_the_recipe",
    ),
    Mutant(
        "equal quadrature weights",
        "expectations.py",
        "(weights / weights.sum()).tolist()",
        "[1 / count] * count",
        "test_recipe.py::test_quadrature_is_the_exact_expectation_over_the_outputs_and_its_gradient",
    ),
    Mutant(
        "every row step moves θ",
        "inference/svi.py",
        "for _ in range(self._row_steps - 1):",
        "for _ in range(self._row_steps - 1):\n"
        "            moved = self.loss_and_gradients(*inputs)[1:]\n"
        "            self.variables.step(index, inputs[first_row:], moved, multiplier)\n"
        "            inputs[first_row:] = self.variables.rows(index)\n"
        "            continue",
        "test_recipe.py::test_row_steps_leave_everything_else_to_the_last_of_them",
    ),
    Mutant(
        "rates do not fall",
        "inference/svi.py",
        "self.options.schedule(done)",
        "self.options.schedule(0.0)",
        "test_svi_records.py::test_schedule_multiplies_the_rates",
    ),
    Mutant(
        "the recipe's schedule is constant",
        "inference/options.py",
        "return 1 - done",
        "return 1.0",
        "test_planted.py::test_the_sweep_fits_by_the_recipe",
    ),
    # the ladder of budgets
    Mutant(
        "F-VI from A-VI: q(θ) not copied",
        "comparing/starting.py",
        "shared.load_state_dict(start.shared)",
        "pass",
        FROM_AVI,
    ),
    Mutant(
        "F-VI from A-VI: the model's parameters not copied",
        "comparing/starting.py",
        "start.put_model(model)",
        "pass",
        FROM_AVI,
    ),
    Mutant(
        "F-VI from A-VI: start of the rows ignored",
        "comparing/starting.py",
        "None if start is None else start.rows",
        "None",
        FROM_AVI,
    ),
    Mutant(
        "F-VI from A-VI: A-VI's time not counted",
        "comparing/fitting.py",
        "(0, 0.0) if start is None else (start.step, start.seconds)",
        "(0, 0.0)",
        FROM_AVI,
    ),
    Mutant(
        "a refined guide measured without its steps",
        "comparing/fitting.py",
        "final_measures(problem, fitting.model, fitting.asked)",
        "final_measures(problem, fitting.model, fitting.guide)",
        "test_own_steps.py::test_steps_are_taken_where_the_fit_is_measured",
    ),
    Mutant(
        "a guide with steps of its own starts elsewhere than A-VI",
        "comparing/starting.py",
        'like = fit.guide if entry.own_steps == "never" else entry.like',
        "like = fit.guide",
        "test_own_steps.py::test_all_start_where_the_amortized_guide_does",
    ),
    Mutant(
        "a budget starts with Adam's moments of the one before",
        "comparing/fitting.py",
        "                    training.load_state(begin)\n",
        "                    now = training.state()\n"
        "                    moved = {k: v for k, v in now.items() if k.startswith('adam') or 'moment' in k}\n"
        "                    training.load_state(begin | moved)\n",
        AFRESH,
    ),
    Mutant(
        "a budget goes on from the one before",
        "comparing/fitting.py",
        "                    training.load_state(begin)\n",
        "                    pass\n",
        AFRESH,
    ),
    Mutant(
        "'not converged by' from a fresh fit",
        "comparing/fitting.py",
        "        go(rest * per_epoch, top)",
        "        training.load_state(begin)\n        go(rest * per_epoch, 0)",
        "test_ladder.py::test_the_top_goes_on_from_the_half",
    ),
    Mutant(
        "the clock counts evaluations",
        "inference/svi.py",
        "-last)\n                        start = time.perf_counter()",
        "-last)",
        "test_ladder.py::test_the_clock_counts_steps_and_nothing_else",
    ),
    # what is measured, and on which points
    Mutant(
        "test ELBO of training images",
        "comparing/measures.py",
        "x = floats(held.test)",
        "x = floats(problem.data[: len(held.test)])",
        "test_measures.py::test_held_measures_are_of_test_points_and_test_targets",
    ),
    Mutant(
        "test error of training images",
        "comparing/fitting.py",
        "problem.held.test[:RUNG_POINTS], problem.held.test_target[:RUNG_POINTS]",
        "problem.data[:RUNG_POINTS], problem.held.target[:RUNG_POINTS]",
        TEST_ERROR,
    ),
    Mutant(
        "fresh factors of training images",
        "comparing/fitting.py",
        "_for_test(problem, fitting, held.test)",
        "_for_test(problem, fitting, problem.data[torch.arange(len(held.test)) % len(problem.data)])",
        TEST_ERROR,
    ),
    Mutant(
        "the sweep's test images are those of training",
        "experiments/guide_fits.py",
        "images.test, images.grey_test",
        "images.train, images.grey_train",
        "test_planted.py::test_the_sweep_measures_test_images_against_grey_values",
    ),
    Mutant(
        "training MSE against binarized pixels",
        "comparing/measures.py",
        '"final_mse_train": mse_of(model, guide, problem.tensor, problem.held.target)',
        '"final_mse_train": mse_of(model, guide, problem.tensor, floats(problem.tensor))',
        "test_measures.py::test_training_measures_are_against_the_targets_and_not_the_data",
    ),
    Mutant(
        "training MSE against binarized pixels, below the top",
        "comparing/measures.py",
        '["mse_train"] = mse_of(model, guide, problem.tensor, problem.held.target)',
        '["mse_train"] = mse_of(model, guide, problem.tensor, floats(problem.tensor))',
        "test_measures.py::test_training_measures_are_against_the_targets_and_not_the_data",
    ),
    Mutant(
        "training MSE against binarized pixels, in the sweep",
        "experiments/guide_fits.py",
        "*(images.grey_train, images.test,",
        "*(images.train.float(), images.test,",
        "test_planted.py::test_the_sweep_measures_test_images_against_grey_values",
    ),
    Mutant(
        "q(θ) trainable while fresh factors are fitted",
        "inference/local.py",
        "requires_grad_(parameter is guide.table.weight)",
        "requires_grad_(True)",
        "test_fresh.py::test_q_of_theta_is_frozen",
    ),
    Mutant(
        "the model trainable while fresh factors are fitted",
        "inference/local.py",
        "module.requires_grad_(False)",
        "module.requires_grad_(True)",
        "test_fresh.py::test_model_and_shared_guide_do_not_move",
    ),
    Mutant(
        "fresh factors under KL warm-up",
        "inference/local.py",
        "        kl_weight=None,\n",
        "",
        "test_fresh.py::test_fresh_factors_are_not_annealed",
    ),
    # comparisons
    Mutant(
        "a reference that ended below its start",
        "comparing/between.py",
        " and not (guide_entry(fit.guide).starts_from and _gain(rungs) < 0)",
        "",
        "test_comparison.py::test_what_ends_below_its_start_is_no_reference",
    ),
    Mutant(
        "shares of a vacuous fit",
        "comparing/between.py",
        "not whole > 0 or fit in vacuous or",
        "not whole > 0 or",
        "test_comparison.py::test_a_vacuous_fit_closes_nothing_and_a_vacuous_reference_tells_nothing",
    ),
    Mutant(
        "shares of the gap to a vacuous reference",
        "comparing/between.py",
        "None if reference in vacuous else ladders",
        "ladders",
        "test_comparison.py::test_a_vacuous_fit_closes_nothing_and_a_vacuous_reference_tells_nothing",
    ),
    # bounds and their errors
    Mutant(
        "errors without the draws of θ",
        "per_point.py",
        "float(rests.shared_error)",
        "0.0",
        "test_shared_noise.py::test_a_guide_compared_with_itself_has_z_scores_of_one",
    ),
    Mutant(
        "an error from one draw of θ",
        "evaluation/bounds.py",
        "return mean, error, math.nan",
        "return mean, error, 0.0",
        "test_shared_noise.py::test_one_draw_of_theta_leaves_the_error_unknown",
    ),
    Mutant(
        "IWAE's KL of θ from draws",
        "evaluation/bounds.py",
        "(expected_log_weights, model, guide, num_data=num_data)",
        "(expected_log_weights, model, guide, num_data=num_data, analytic_kl=False)",
        "test_shared_noise.py::test_iwae_has_the_kl_of_theta_in_closed_form",
    ),
    Mutant(
        "log predictive with one draw of θ",
        "evaluation/bounds.py",
        "1 if local_reparametrization else num_shared",
        "1",
        "test_bounds.py::test_log_predictive_is_the_closed_form",
    ),
    Mutant(
        "log predictive with one draw of each point's weights",
        "evaluation/bounds.py",
        "blocks(num_particles * num_shared, most)",
        "[1]",
        "test_shared_noise.py::test_log_predictive_by_local_reparametrization_is_that_of_drawn_weights",
    ),
    Mutant(
        "BDMC's upper bound with the wrong sign",
        "evaluation/bdmc.py",
        "upper=-negative",
        "upper=negative",
        BDMC,
    ),
    Mutant(
        "BDMC's upper bound from weights of the wrong sign",
        "evaluation/bdmc.py",
        "mean_and_error(-downs[0])",
        "mean_and_error(downs[0])",
        BDMC,
    ),
    Mutant(
        "BDMC's upper bound from the mean of w', not of 1/w'",
        "evaluation/bdmc.py",
        "mean_and_error(-downs[0])\n",
        "mean_and_error(downs[0])\n    negative = -negative\n",
        BDMC,
    ),
    Mutant(
        "θ not held fixed in diagnose's AIS",
        "diagnosis/stages.py",
        "    bound = ais(",
        '    options["fixed"] = draw_shared(job.guide, *job.args, num_draws=1, plate=job.plate)[0]\n    bound = ais(',
        "test_diagnose.py::test_every_estimate_is_given_the_same_draw_of_the_shared_latents",
    ),
    Mutant(
        "draws of θ of each block's own",
        "diagnosis/stages.py",
        "    fixed = ground.fixed[number]",
        "    fixed = _shared_draws(job)[number]",
        "test_diagnose_blocks.py::test_all_blocks_see_the_same_draws_of_shared_latents",
    ),
    Mutant(
        "blocks of points that share their noise",
        "experiments/gap_blocks.py",
        "torch_seed(config.seed, job_key(factors, MEASURED))",
        "config.seed",
        "test_gap_blocks.py::test_each_block_is_of_its_own_points_under_the_seed_of_its_key",
    ),
    Mutant(
        "a mean over the blocks that did not fail",
        "experiments/gap_blocks.py",
        "for key in blocks]",
        'for key in blocks if lab.status(key) == "ok"]',
        "test_gap_blocks.py::test_a_block_that_fails_leaves_no_mean_of_the_others",
    ),
    Mutant(
        "the better of two searches scored on the draws that chose it",
        "experiments/grid.py",
        "elbo_star=log_w.mean(0)",
        "elbo_star=torch.maximum(searches[0].elbo_star, searches[1].elbo_star)",
        "test_toy_posteriors.py::test_the_better_of_two_searches_is_not_scored_on_the_draws_that_chose_it",
    ),
    # enumerated discrete latents
    Mutant(
        "values of a discrete latent multiplied, not summed",
        "enumeration/summing.py",
        "whole.logsumexp(",
        "whole.sum(",
        "test_enumeration.py::test_a_mixture_without_other_latents_is_its_evidence",
    ),
    Mutant(
        "sums over a discrete latent given to other points",
        "enumeration/summing.py",
        "packed.unpack(found, trace.symbol_to_dim)",
        "packed.unpack(found, trace.symbol_to_dim).flip(-1)",
        "test_enumeration.py::test_log_joint_is_that_of_the_marginal_model",
    ),
    Mutant(
        "q(y|x) drawn where the ELBO averages over it",
        "enumeration/expectation.py",
        "(weights * possible)",
        "(weights.detach() * possible)",
        "test_enumeration_calls.py::test_the_guides_own_sites_are_averaged_over_exactly",
    ),
    Mutant(
        "weights of a doubly reparametrized gradient not squared",
        "inference/importance.py",
        "None if g is None else g * w for g, w",
        "g for g, w",
        "test_importance.py::test_gradients_are_those_of_the_integrals",
    ),
    Mutant(
        "weights of particles differentiated",
        "inference/importance.py",
        "log_w.detach().softmax(0)",
        "log_w.softmax(0)",
        "test_importance.py::test_gradients_are_those_of_the_integrals",
    ),
    *OF_BITS,
    Mutant(
        "importance weights summed, not averaged",
        "inference/importance.py",
        "log_w.logsumexp(0) - math.log(num_particles)",
        "log_w.logsumexp(0)",
        "test_importance.py::test_gradients_are_those_of_the_integrals",
    ),
    Mutant(
        "the wake phase of a guide downhill",
        "inference/importance.py",
        "loss - (weights * self.log_q)",
        "loss + (weights * self.log_q)",
        "test_importance.py::test_the_wake_phase_goes_to_the_inclusive_divergence_and_vanishes_at_the_posterior",
    ),
    Mutant(
        "a latent's draw taken to depend on no other",
        "inference/importance.py",
        "[_sum(a, b) for a, b in zip(pulled[:i], found[count:], strict=True)]",
        "pulled[:i]",
        "test_importance_guides.py::test_gradients_have_the_mean_of_the_plain_ones",
    ),
    Mutant(
        "the score of q(z) in the gradient of latents outside the plate",
        "inference/importance.py",
        "if (cut.dim is not None) == inside]",
        "if cut.dim is None or inside]",
        "test_importance_guides.py::test_gradients_have_the_mean_of_the_plain_ones",
    ),
)
