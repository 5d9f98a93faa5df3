"""What a training reports, and the averages it leaves."""

import copy

import pytest
import torch
from fits import OPTIONS, every_family, parts_of, same_bits, steps, training

from amortized_bayes.inference.fit import FitResult, fit, fit_steps
from amortized_bayes.inference.options import StepRecord


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
    run, other, third = training(), training(), training()
    result = fit(run.model, run.guide, run.data, 8, OPTIONS)
    steps(other, 8)
    other.settle()
    records = list(fit_steps(third.model, third.guide, third.data, 8, OPTIONS, report_at=[5]))
    assert [r.step for r in records] == [5, 8]
    assert [r.step for r in result.records] == [*range(1, 9)]
    assert [r.elbo for r in result.records if r.step in (5, 8)] == [r.elbo for r in records]
    assert result.steps == 8
    assert result.seconds == result.records[-1].seconds > 0
    for a, b, c in zip(run.variables.parameters, other.variables.parameters, third.variables.parameters, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.slow
def test_a_long_fit_has_a_hundred_records():
    run = training("constant")
    assert [r.step for r in fit(run.model, run.guide, run.data, 250, OPTIONS).records][-3:] == [245, 248, 250]


def test_no_steps_are_refused():
    run = training()
    with pytest.raises(ValueError, match="num_steps of 1 or more, got 0"):
        fit(run.model, run.guide, run.data, 0, OPTIONS)


def result_of(curve, **options):
    return FitResult.of([StepRecord(i + 1, 0.1 * i, v) for i, v in enumerate(curve)], **options)


def test_what_a_result_says_of_its_curve():
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist()
    rising = result_of([0.1 * i + 0.1 * e for i, e in enumerate(noise)])
    level = result_of([-3 + 0.01 * e for e in noise])
    unclear = result_of([-3 + 5 * e for e in noise])
    short = result_of([0.0, 1.0])
    assert (rising.converged, level.converged, unclear.converged, short.converged) == (False, True, None, None)
    assert abs(rising.gain - 2.5) < 4 * rising.gain_error < 1
    assert abs(level.elbo + 3) < 4 * level.elbo_error < 0.02
    assert result_of(noise, annealed=True).converged is None
    words = [repr(result) for result in (rising, level, unclear, short)]
    for word, part in zip(words, ("still rising by 2.4", "level)", "perhaps rising", "too few records"), strict=True):
        assert part in word


def test_the_bar_is_for_terminals_alone(capsys, monkeypatch):
    run = training("constant")
    fit(run.model, run.guide, run.data, 4, OPTIONS)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    fit(run.model, run.guide, run.data, 4, OPTIONS)
    assert "fit, ELBO" in capsys.readouterr().err
    fit(run.model, run.guide, run.data, 4, OPTIONS, progress=False)
    assert capsys.readouterr().err == ""
