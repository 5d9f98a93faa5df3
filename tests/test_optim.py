"""Row-sparse Adam against torch's dense one, and averages of iterates against their formula."""

import pytest
import torch

from amortized_bayes.inference.optim import IterateAverage, RowAdam
from amortized_bayes.networks import RowTable

N, W = 10, 3
INDEX = torch.tensor([7, 2, 5])
OTHERS = torch.tensor([n for n in range(N) if n not in INDEX.tolist()])


def visit(adam, index, gradient, multiplier=1.0):
    adam.step(index, adam.table.weight.detach()[index], gradient, multiplier)


def warmed_up(average=None):
    """Moments, counts and averages of every row at values of their own."""
    adam = RowAdam(RowTable(torch.randn(N, W)), 0.05, average=average)
    for _ in range(4):
        visit(adam, torch.randperm(N)[:6], torch.randn(6, W))
    return adam


@pytest.mark.parametrize("average", [None, 8.0])
def test_other_rows_stay_as_they_are_bit_for_bit(float64, average):
    adam = warmed_up(average)
    before = {name: tensor.clone() for name, tensor in adam.state().items()}
    visit(adam, INDEX, torch.randn(3, W))
    for name, tensor in adam.state().items():
        assert torch.equal(tensor[OTHERS], before[name][OTHERS]), name
        assert not (tensor[INDEX] == before[name][INDEX]).any(), name
    assert torch.equal(adam.count[INDEX], before["count"][INDEX] + 1)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_equals_dense_adam_on_full_batches(float64, betas):
    start = torch.randn(N, W)
    adam, dense = RowAdam(RowTable(start.clone()), 0.03, betas, eps=1e-6), start.clone().requires_grad_()
    reference = torch.optim.Adam([dense], lr=0.03, betas=betas, eps=1e-6)
    for _ in range(50):
        order, gradient = torch.randperm(N), torch.randn(N, W)
        visit(adam, order, gradient[order])
        dense.grad = gradient
        reference.step()
    torch.testing.assert_close(adam.table.weight, dense, rtol=0, atol=1e-12)


def test_each_row_goes_as_if_it_were_alone(float64):
    start = torch.randn(N, W)
    adam = RowAdam(RowTable(start.clone()), 0.03)
    rows = [start[n].clone().requires_grad_() for n in range(N)]
    references = [torch.optim.Adam([row], lr=0.03) for row in rows]
    for _ in range(30):
        index = torch.randperm(N)[:4]
        gradient = torch.randn(4, W)
        visit(adam, index, gradient)
        for n, g in zip(index.tolist(), gradient, strict=True):
            rows[n].grad = g
            references[n].step()
    torch.testing.assert_close(adam.table.weight, torch.stack(rows), rtol=0, atol=1e-12)


def test_first_visit_at_a_late_step_moves_by_the_learning_rate(float64):
    adam = RowAdam(RowTable(torch.zeros(N, W)), 0.05)
    for _ in range(500):
        visit(adam, OTHERS, torch.randn(len(OTHERS), W))
    gradient = torch.randn(3, W)
    visit(adam, INDEX, gradient)
    torch.testing.assert_close(adam.table.weight[INDEX], -0.05 * gradient.sign(), rtol=1e-6, atol=0)


def test_multiplier_scales_the_step_alone(float64):
    whole, half = (RowAdam(RowTable(torch.zeros(N, W)), 0.05) for _ in range(2))
    gradient = torch.randn(3, W)
    visit(whole, INDEX, gradient)
    visit(half, INDEX, gradient, 0.5)
    torch.testing.assert_close(half.table.weight, 0.5 * whole.table.weight)
    assert torch.equal(half.first_moment, whole.first_moment)
    assert torch.equal(half.second_moment, whole.second_moment)


def test_memory_is_three_tables_and_a_counter_a_row():
    """With W = 2 D that is 6 N D floats and N counters; an average is another table."""
    state = RowAdam(RowTable(torch.zeros(N, W)), 0.1).state()
    floats = sum(t.numel() for t in state.values() if t.is_floating_point())
    counters = [t for t in state.values() if not t.is_floating_point()]
    assert floats == 3 * N * W
    assert [(t.numel(), t.element_size()) for t in counters] == [(N, 4)]
    averaged = RowAdam(RowTable(torch.zeros(N, W)), 0.1, average=8.0).state()
    assert sum(t.numel() for t in averaged.values()) == 4 * N * W + N


def test_state_goes_on_as_without_a_stop(float64):
    adam = warmed_up(8.0)
    other = RowAdam(RowTable(torch.zeros(N, W)), 0.05, average=8.0)
    other.load_state({name: tensor.clone() for name, tensor in adam.state().items()})
    gradient = torch.randn(3, W)
    for each in (adam, other):
        visit(each, INDEX, gradient)
    assert all(torch.equal(a, b) for a, b in zip(adam.state().values(), other.state().values(), strict=True))


def polynomial_decay(iterates, eta):
    """The weights written out: of iterate s, (eta + 1) / (s + eta) times what later ones leave of it."""
    count, total = len(iterates), torch.zeros_like(iterates[0])
    for s, iterate in enumerate(iterates, 1):
        weight = (eta + 1) / (s + eta)
        for t in range(s + 1, count + 1):
            weight *= 1 - (eta + 1) / (t + eta)
        total = total + weight * iterate
    return total


@pytest.mark.parametrize("eta", [0.0, 3.0, 8.0])
@pytest.mark.parametrize("count", [1, 2, 25])
def test_average_is_its_formula(float64, eta, count):
    parameters = [torch.randn(4), torch.randn(2, 3)]
    average, iterates = IterateAverage(parameters, eta), []
    for _ in range(count):
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))
        average.update()
        iterates.append([p.clone() for p in parameters])
    for i, found in enumerate(average.averaged):
        torch.testing.assert_close(found, polynomial_decay([step[i] for step in iterates], eta))
    if eta == 0:
        torch.testing.assert_close(average.averaged[0], torch.stack([step[0] for step in iterates]).mean(0))


def test_average_of_a_row_counts_its_own_visits(float64):
    adam, iterates = RowAdam(RowTable(torch.randn(N, W)), 0.05, average=8.0), {n: [] for n in range(N)}
    start = adam.table.weight.detach().clone()
    for _ in range(12):
        index = torch.randperm(N - 1)[:4]  # the last row is never visited
        visit(adam, index, torch.randn(4, W))
        for n in index.tolist():
            iterates[n].append(adam.table.weight.detach()[n].clone())
    for n, visited in iterates.items():
        torch.testing.assert_close(adam.averaged[n], polynomial_decay(visited, 8.0) if visited else start[n])


def test_nothing_to_average():
    average = IterateAverage([])
    average.update()
    assert average.averaged == []
    assert average.count == 1
