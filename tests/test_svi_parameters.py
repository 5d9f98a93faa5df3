"""Which parameters a step moves, and at which rate."""

import copy
import dataclasses

import pytest
import torch
from fits import OPTIONS, N, P, every_family, parts_of, same_bits, steps, training

from amortized_bayes.inference.svi import Training


@every_family
@pytest.mark.parametrize("capture", ["off", "replay"])
def test_frozen_parameters_do_not_move_a_bit(family, capture):
    run = training(family, bayesian=True)
    for parameter in run.guide.shared.parameters():
        parameter.requires_grad_(False)
    frozen = [p.clone() for p in run.guide.shared.parameters()]
    run = Training(run.model, run.guide, run.data, dataclasses.replace(OPTIONS, capture=capture))
    steps(run, 5)
    run.settle()
    assert all(torch.equal(a, b) for a, b in zip(frozen, run.guide.shared.parameters(), strict=True))


@pytest.mark.parametrize("family", ["factorized", "amortized"])
def test_a_frozen_guide_stays_while_the_model_is_fitted(family):
    run = training(family)
    for parameter in run.guide.parameters():
        parameter.requires_grad_(False)
    frozen = copy.deepcopy(run.guide.state_dict())
    run = Training(run.model, run.guide, run.data, OPTIONS)
    scale = run.model.log_scale.clone()
    steps(run, 5)
    run.settle()
    assert all(torch.equal(a, b) for a, b in zip(frozen.values(), run.guide.state_dict().values(), strict=True))
    assert not torch.equal(scale, run.model.log_scale)


def test_rates_of_local_and_shared_parameters():
    run = training("amortized", learning_rate=0.0, shared_learning_rate=0.1)
    encoder = copy.deepcopy(run.guide.encoder.state_dict())
    shared = copy.deepcopy(run.guide.shared.state_dict())
    scale = run.model.log_scale.clone()
    steps(run, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.values(), run.guide.encoder.state_dict().values(), strict=True)
    )
    assert not any(
        torch.equal(a, b) for a, b in zip(shared.values(), run.guide.shared.state_dict().values(), strict=True)
    )
    assert not torch.equal(scale, run.model.log_scale)


def test_a_batch_moves_its_own_rows_alone():
    run = training("factorized")
    start = run.guide.table.weight.detach().clone()
    steps(run, 1)
    moved = (run.guide.table.weight != start).all(1)
    assert set(moved.nonzero()[:, 0].tolist()) == set(run.batches[0].tolist())
    assert torch.equal(run.guide.table.weight[~moved], start[~moved])


def test_integer_data_are_converted_batch_by_batch():
    data = torch.bernoulli(torch.full((N, P), 0.5))
    found = []
    for each in (data, data.to(torch.uint8)):
        run = training(data=each)
        steps(run, 4)
        found.append(parts_of(run))
    assert same_bits(*found)


def test_size_counts_local_parameters():
    assert training("factorized").size()[0] == N * 4
    assert training("constant").size()[0] == 4
    assert training("amortized").size()[0] == (P + 1) * 3 + 4 * 4
