"""What a training reports, and the averages it leaves."""

import copy

import pytest
import torch
from fits import OPTIONS, every_family, parts_of, same_bits, steps, training

from amortized_bayes.inference.svi import fit


def test_records_at_the_marks_and_at_the_last_step():
    run = training()
    records = steps(run, 10, report_at=[3, 7, 99])
    assert [r.step for r in records] == [3, 7, 10]
    assert 0 < records[0].seconds < records[1].seconds < records[2].seconds
    assert [r.step for r in steps(run, 5, report_at=[3, 12])] == [12, 15]


def test_elbo_of_a_record_is_that_of_its_batch(float64):
    run = training(bayesian=False)
    before = copy.deepcopy(run)
    (record,) = steps(run, 1)
    with before.stream:
        loss = before.loss_and_gradients(*before._inputs(before.batches[0]))[0]
    assert record.elbo == -loss.item()


def test_time_between_records_is_not_counted():
    run = training()
    for _ in run.run(3, report_at=[1, 2]):
        torch.randn(1000, 1000) @ torch.randn(1000, 1000) @ torch.randn(1000, 1000)
    generous = 0.5
    assert run.seconds < generous


@every_family
def test_schedule_multiplies_the_rates(family):
    still, moving = training(family, schedule=lambda done: 0.0), training(family)
    seen = []
    recorded = training(family, schedule=lambda done: seen.append(done) or 1.0)
    start = [p.clone() for p in (*still.variables.parameters, *(a.table.weight for a in still.variables.row_adams))]
    for run in (still, moving, recorded):
        steps(run, 4)
    assert all(
        torch.equal(p, q)
        for p, q in zip(
            start, (*still.variables.parameters, *(a.table.weight for a in still.variables.row_adams)), strict=True
        )
    )
    assert seen == [0.0, 0.25, 0.5, 0.75]
    assert same_bits(parts_of(recorded), parts_of(moving))


@every_family
def test_averages_are_put_in_and_taken_out(family):
    run = training(family)
    steps(run, 8)
    tensors = [*run.variables.parameters, *(a.table.weight for a in run.variables.row_adams)]
    averages = [*run.variables.average.averaged, *(a.averaged for a in run.variables.row_adams)]
    before = [t.detach().clone() for t in tensors]
    with run.averaged():
        assert all(torch.equal(t, a) for t, a in zip(tensors, averages, strict=True))
        assert not all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    with pytest.raises(KeyboardInterrupt), run.averaged():
        raise KeyboardInterrupt
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    run.settle()
    assert all(torch.equal(t, a) for t, a in zip(tensors, averages, strict=True))


def test_fit_leaves_the_averages_in():
    run, other = training(), training()
    records = list(fit(run.model, run.guide, run.data, 8, OPTIONS))
    steps(other, 8)
    other.settle()
    assert [r.step for r in records] == [8]
    for a, b in zip(run.variables.parameters, other.variables.parameters, strict=True):
        assert torch.equal(a, b)
