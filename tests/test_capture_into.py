"""A captured program that writes its outputs into tensors that it reads."""

import pytest
import torch
from fits import training

from amortized_bayes.capture import CaptureError, capture


def test_outputs_are_written_into_what_the_program_reads(float64):
    kept, scalar = torch.arange(3.0), torch.zeros(())

    def program(x):
        return [(x * kept).sum(), kept + x, scalar - kept.sum()]

    captured = capture(program, [torch.ones(3)], [torch.ones(3)], into=[kept, scalar])
    assert kept.tolist() == [0, 1, 2]  # the check leaves no trace
    assert scalar == 0
    (total,) = captured(torch.ones(3))
    assert (total, scalar) == (3, -3)
    assert kept.tolist() == [1, 2, 3]
    assert captured(torch.ones(3))[0] == 6


def test_what_is_written_to_is_read_and_compared():
    kept = torch.zeros(3)
    with pytest.raises(CaptureError, match=r"does not read the tensor of shape \(3,\)"):
        capture(lambda x: [x, x + 1], [torch.ones(3)], [torch.ones(3)], into=[kept])
    scale = [1.0]  # a Python number, frozen in the graph

    def scaled(x):
        scale[0] *= 2
        return [x, kept + scale[0] * x]

    inputs = [torch.ones(3)]
    with pytest.raises(CaptureError, match="differs from the program"):
        capture(scaled, inputs, inputs, into=[kept])
    assert capture(scaled, inputs, inputs, into=[kept], compared=1).into[0] is kept


@pytest.mark.parametrize("family", ["constant", "amortized"])
def test_the_move_that_is_compiled_is_that_of_torchs_adam(float64, family):
    """Several steps of each, at rates of their own, from the same gradients."""
    rates = {"learning_rate": 3e-2, "shared_learning_rate": 1e-2, "shared_scale_learning_rate": 1e-3}
    fused, written = (training(family, adam_beta2=0.9, adam_eps=1e-3, **rates).variables for _ in range(2))
    for multiplier in (1.0, 0.7, 0.2):
        gradients = [torch.randn_like(p) for p in fused.parameters]
        fused.step(torch.arange(2), [], gradients, multiplier)
        numbers = written.numbers(multiplier, torch.float64, torch.device("cpu"))
        for tensor, value in zip(written.moving(), written.moved(gradients, numbers), strict=True):
            tensor.data.copy_(value)
        written.average.count += 1
    assert fused.state().keys() == written.state().keys()
    for name, tensor in fused.state().items():
        torch.testing.assert_close(tensor, written.state()[name], rtol=1e-12, atol=1e-12, msg=name)
