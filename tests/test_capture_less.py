"""A replay computes no more than what is asked for: signs are folded, and outputs can be left out."""

import operator

import pytest
import torch
from torch import Tensor

from amortized_bayes.capture import CAPTURED_FROM, Captured, capture
from amortized_bayes.joint import captured_or_plain, only

aten = torch.ops.aten


def bernoulli(logits: Tensor, x: Tensor) -> list[Tensor]:
    """The log likelihood of pixels and its gradient, which autograd begins with a product with -1 at each pixel."""
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        log_p = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
        other = (-torch.nn.functional.softplus(logits)).sum(-1)
        (gradient,) = torch.autograd.grad((log_p + other).sum(), logits)
    return [log_p.detach(), gradient, other.detach()]


def inputs() -> list[Tensor]:
    return [3 * torch.randn(5, 7), (torch.rand(5, 7) < 0.5).float()]


def targets(program: object) -> list[object]:
    return [node.target for node in operator.attrgetter("replay.graph.nodes")(program)]


def test_signs_are_folded_and_no_number_changes() -> None:
    captured = capture(bernoulli, inputs(), inputs())
    for _ in range(3):
        given = inputs()
        for plain, replayed in zip(bernoulli(*given), captured(*given), strict=True):
            assert torch.equal(plain, replayed)
    negatives = [node for node in captured.replay.graph.nodes if node.target is aten.neg.default]  # type: ignore[attr-defined]
    assert all(node.meta["val"].dim() == 1 or node.args[0].op == "placeholder" for node in negatives)


@pytest.mark.parametrize("value", [1.0, -1.0, 2.0])
def test_products_with_a_constant(value: float) -> None:
    def program(a: Tensor, b: Tensor) -> list[Tensor]:
        constant = torch.full((5, 7), value)
        difference = a - b
        return [
            (a * constant),
            -difference,
            -(a - 1.5),
            -(a - b[:, :1]),
            (difference * constant).sum(-1),
            -(-a).sum(-1),
        ]

    captured = capture(program, inputs(), inputs())
    given = inputs()
    for plain, replayed in zip(program(*given), captured(*given), strict=True):
        assert torch.equal(plain, replayed)
    assert (aten.mul.Tensor in targets(captured)) == (value == 2.0)


def test_outputs_that_are_left_out_are_not_computed() -> None:
    captured = capture(bernoulli, inputs(), inputs())
    gradient = captured.only([1])
    given = inputs()
    assert torch.equal(gradient(*given)[0], captured(*given)[1])
    assert len(gradient(*given)) == 1
    assert aten.binary_cross_entropy_with_logits.default in targets(captured)
    assert aten.binary_cross_entropy_with_logits.default not in targets(gradient)
    swapped = captured.only([2, 0])(*given)
    assert all(torch.equal(a, b) for a, b in zip(swapped, captured(*given)[::-2], strict=True))


def test_some_outputs_of_a_program_that_is_not_captured() -> None:
    def stubborn(logits: Tensor, x: Tensor) -> list[Tensor]:
        float(x.sum().item())
        return bernoulli(logits, x)

    program = captured_or_plain(stubborn, inputs(), inputs(), 10_000)
    assert program is stubborn
    given = inputs()
    assert torch.equal(only(program, [1])(*given)[0], bernoulli(*given)[1])


def test_a_program_of_few_calls_is_not_captured() -> None:
    assert captured_or_plain(bernoulli, inputs(), inputs(), CAPTURED_FROM - 1) is bernoulli
    assert isinstance(captured_or_plain(bernoulli, inputs(), inputs(), CAPTURED_FROM), Captured)
