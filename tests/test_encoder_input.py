"""What encoders see: the first argument in any shape, or what ``encoder_input`` makes of them all."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import amortized_bayes as ab
from amortized_bayes.guides.local import LocalGuide

N = 6
GUIDES = {
    "amortized": (ab.Amortized, {}),
    "planar": (ab.FlowGuide, {"settings": ab.FlowSettings("planar")}),
    "auxiliary": (ab.FlowGuide, {"settings": ab.FlowSettings("auxiliary")}),
}
every_guide = pytest.mark.parametrize("name", GUIDES)


def latent() -> Tensor:
    return pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)).sum(-1)


def tensors(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        mean = latent().reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(x.dim() - 1), obs=x)


def dicts(batch: dict[str, Tensor], *, power: int = 1) -> None:
    with pyro.plate("data", len(batch["x"])):
        z = latent()
        pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])
        pyro.sample("y", dist.Normal((z**power)[:, None].expand(-1, 3), 1.0).to_event(1), obs=batch["y"])


def guide_of(name: str, model: Any, *args: Any, observed: int, **options: Any) -> LocalGuide:
    kind, own = GUIDES[name]
    torch.manual_seed(0)
    return kind(ab.latent_sites(model, *args).local, N, observed, width=4, **own, **options)


def elbo(model: Any, guide: LocalGuide, *args: Any) -> Tensor:
    return ab.elbo(model, guide, *args, num_draws=3).value


@every_guide
@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3)])
def test_data_may_have_any_shape(name: str, shape: tuple[int, ...]) -> None:
    """Images and single numbers give what the same numbers in a row per point give."""
    x = torch.randn(N, *shape)
    flat, size = x.reshape(N, -1), x[0].numel()
    torch.testing.assert_close(
        elbo(tensors, guide_of(name, tensors, x, observed=size), x),
        elbo(tensors, guide_of(name, tensors, flat, observed=size), flat),
    )


@every_guide
def test_an_encoder_sees_what_it_is_told_to(name: str) -> None:
    batch = {"x": torch.randn(N), "y": torch.randn(N, 3)}
    both = torch.cat([batch["x"][:, None], batch["y"]], 1)

    def see(batch: dict[str, Tensor], *, power: int = 1) -> Tensor:
        return torch.cat([batch["x"][:, None], batch["y"]], 1)

    guide = guide_of(name, dicts, batch, observed=4, encoder_input=see)
    twin = guide_of(name, dicts, batch, observed=4)
    places = torch.arange(N)
    torch.testing.assert_close(guide.locate(guide.read(batch)[0], places), twin.locate(both, places))
    assert elbo(dicts, guide, batch).isfinite().all()
    rows, index = guide.read(batch, index=places[:3])
    assert torch.equal(rows, both)
    assert torch.equal(index, places[:3])  # pyright: ignore[reportArgumentType]


def test_a_network_before_the_encoder_is_fitted_along() -> None:
    batch, first = {"x": torch.randn(N), "y": torch.randn(N, 3)}, nn.Linear(3, 2)

    class See(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = first

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.first(batch["y"])

    before = first.weight.detach().clone()
    guide = guide_of("amortized", dicts, batch, observed=2, encoder_input=See())
    ab.fit(dicts, guide, batch, num_steps=3, options=ab.FitOptions(batch_size=N), progress=False)
    assert (first.weight != before).all()


@every_guide
def test_other_data_are_refused_by_one_line(name: str) -> None:
    batch = {"x": torch.randn(N), "y": torch.randn(N, 3)}
    with pytest.raises(TypeError, match=r"expected data as a tensor \(B, \.\.\.\), got dict; say by encoder_input="):
        elbo(dicts, guide_of(name, dicts, batch, observed=4), batch)
    x = torch.randn(N, 2, 2)
    with pytest.raises(ValueError, match="data points of 3 numbers, as the guide was made for") as error:
        elbo(tensors, guide_of(name, tensors, x, observed=3), x)
    assert "got 4" in str(error.value)
    assert "\n" not in str(error.value)
