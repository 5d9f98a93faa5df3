"""Batches visit points equally often; a stream of random numbers keeps its place."""

import math

import pytest
import torch

from amortized_bayes.inference.streams import Batches, Stream


@pytest.mark.parametrize(("count", "size"), [(20, 6), (20, 20), (7, 1), (8, 5)])
def test_batches_of_an_epoch_are_distinct_points(count, size):
    batches = Batches(count, size, 3, torch.device("cpu"))
    assert batches.per_epoch == count // size
    epochs = []
    for epoch in range(3):
        points = torch.cat([batches[epoch * batches.per_epoch + i] for i in range(batches.per_epoch)])
        assert len(set(points.tolist())) == batches.per_epoch * size
        epochs.append(points.tolist())
    assert epochs[0] != epochs[1]
    assert torch.equal(batches[0], Batches(count, size, 3, torch.device("cpu"))[0])  # in any order


def test_every_point_is_visited_equally_often():
    batches = Batches(10, 3, 0, torch.device("cpu"))
    visits = torch.bincount(torch.cat([batches[s] for s in range(3000)]), minlength=10)
    expected = 3000 * 3 / 10
    assert (visits - expected).abs().max() < 5 * math.sqrt(1000 * 0.9 * 0.1)


def test_stream_keeps_its_place_and_gives_back_the_outside():
    torch.manual_seed(2)
    whole, parts = Stream(7, torch.zeros(1)), Stream(7, torch.zeros(1))
    with whole:
        expected = torch.rand(4).tolist()
    outside = torch.rand(2).tolist()
    torch.manual_seed(2)
    with parts:
        found = [torch.rand(()).item()]
        with parts.paused():
            seen = [torch.rand(()).item()]
        found.append(torch.rand(()).item())
    other = Stream(8, torch.zeros(1))
    other.load_state(parts.state())
    seen.append(torch.rand(()).item())
    with other:
        found += torch.rand(2).tolist()
    assert found == expected
    assert seen == outside
