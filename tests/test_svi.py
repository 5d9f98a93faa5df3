"""Training: reproducible, and resumed as if it had never stopped."""

import math

import pytest
import torch
from fits import N, every_family, parts_of, same_bits, steps, training

from amortized_bayes.weights import log_weights


@every_family
@pytest.mark.parametrize("capture", ["off", "replay"])
@pytest.mark.slow_cases("off-constant", "off-factorized", "replay-amortized", "replay-constant", "replay-factorized")
def test_two_runs_of_one_seed_are_equal_bit_for_bit(family, capture):
    runs = [training(family, seed, capture=capture) for seed in (3, 3, 4)]
    elbos = []
    for number, run in enumerate(runs):
        torch.manual_seed(number)  # what the outside draws does not matter
        elbos.append([record.elbo for record in steps(run, 9, report_at=range(10))])
    assert elbos[0] == elbos[1]
    assert elbos[0] != elbos[2]
    assert same_bits(parts_of(runs[0]), parts_of(runs[1]))
    assert not same_bits(parts_of(runs[0]), parts_of(runs[2]))


@every_family
@pytest.mark.parametrize("local_reparametrization", [False, True])
def test_captured_and_uncaptured_runs_agree(float64, family, local_reparametrization):
    found = []
    for capture in ("off", "replay"):
        run = training(family, capture=capture, local_reparametrization=local_reparametrization)
        records = steps(run, 15, report_at=range(16))
        assert (run.captured is not None) == (capture == "replay")
        found.append((torch.tensor([r.elbo for r in records]), parts_of(run)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-10)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=1e-10, atol=1e-10, msg=name)


@every_family
def test_reports_do_not_change_the_run(family):
    quiet, loud = training(family), training(family)
    steps(quiet, 12)
    outside = []
    for _ in loud.run(12, report_at=[1, 2, 5, 11]):
        outside.append(torch.rand(()).item())  # draws between records come from the outside's stream
        with loud.averaged():
            log_weights(loud.model, loud.guide, loud.data, torch.arange(N))
    assert same_bits(parts_of(quiet), parts_of(loud))
    assert len(set(outside)) == 5


def test_the_outside_stream_goes_on_as_if_there_were_no_run():
    run = training()
    torch.manual_seed(8)
    expected = torch.rand(3).tolist()
    torch.manual_seed(8)
    found = []
    for _ in run.run(6, report_at=[2, 4]):
        found.append(torch.rand(()).item())
    assert found == expected


@every_family
@pytest.mark.parametrize("capture", ["off", "replay"])
@pytest.mark.slow_cases("off-amortized", "off-factorized", "replay-amortized", "replay-constant", "replay-factorized")
def test_stopping_and_going_on_is_as_not_stopping(family, capture):
    whole = training(family, capture=capture)
    elbos = [record.elbo for record in steps(whole, 14, report_at=range(15))]

    first = training(family, capture=capture)
    found = [record.elbo for record in steps(first, 5, report_at=range(15))]
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = training(family, capture=capture)
    with torch.no_grad():
        for parameter in second.variables.parameters:
            parameter.normal_()
    second.load_state(saved)
    assert (second.steps, second.seconds) == (5, first.seconds)
    found += [record.elbo for record in steps(second, 9, report_at=range(15))]

    assert found == elbos
    assert same_bits(parts_of(whole), parts_of(second))


def test_a_run_in_pieces_is_the_run_in_one():
    whole, pieces = training(), training()
    steps(whole, 14)
    for count in (1, 6, 7):
        steps(pieces, count)
    assert same_bits(parts_of(whole), parts_of(pieces))


@every_family
def test_state_taken_between_records_goes_on(family):
    whole, half = training(family), training(family)
    steps(whole, 12)
    for record in half.run(12, report_at=[5]):
        if record.step == 5:
            saved = {name: tensor.clone() for name, tensor in half.state().items()}
            break
    other = training(family)
    other.load_state(saved)
    steps(other, 7)
    assert same_bits(parts_of(whole), parts_of(other))


def test_state_before_the_first_step_knows_no_first_loss():
    fresh = training()
    other = training()
    other.load_state({name: tensor.clone() for name, tensor in fresh.state().items()})
    assert other.first_loss is None
    steps(other, 2)
    assert math.isfinite(other.first_loss)


def test_state_of_another_guide_is_refused():
    with pytest.raises(ValueError, match="expected a state with tensors"):
        training("amortized").load_state(training("factorized").state())
