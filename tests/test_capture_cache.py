"""Compiled programs and Inductor's cache."""

import time

import pytest
import torch
from torch._dynamo.utils import counters

from amortized_bayes.capture import capture


@pytest.mark.slow
def test_what_was_compiled_once_is_found_in_the_cache():
    """Inductor's own cache, with its headers, and a graph that is not there yet: a new cache takes ten seconds more."""
    new, found = time.time() % 1, []

    def sine_times(weight):
        return lambda x: [x.sin() * weight + new]

    for offset in (1.0, 2.0):  # a closed-over tensor is an input of the graph, so that its values do not matter
        weight = torch.full((3,), offset)
        counters.clear()
        captured = capture(sine_times(weight), [torch.ones(3)], [torch.zeros(3)], backend="inductor")
        assert torch.allclose(captured(torch.ones(3))[0], torch.ones(3).sin() * offset + new)
        found.append(counters["inductor"]["fxgraph_cache_hit"])
    assert found == [0, 1]
