"""Images as bits: ``train --family bernoulli`` and ``gaps`` on it, against the sum over all codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wing import TINY, go, loaded

from amortized_bayes.configuration import SettingError
from amortized_bayes.experiments import decoder_capacity, frozen_decoder, qstar, toy_posteriors
from amortized_bayes.experiments.bounds import images_at
from amortized_bayes.experiments.gaps import Config
from amortized_bayes.experiments.training import active_bits
from amortized_bayes.guides import AmortizedBits
from amortized_bayes.models import DeepGenerativeBits
from amortized_bayes.models.semantic_hashing import all_codes
from amortized_bayes.presenting.sentences import sentences

BITS = replace(TINY, family="bernoulli", latent_dim=4, epochs=6)
FEW = Config(
    splits=("test",), points=20, particles=2_000, restarts=1, local_steps=20, chains=2, temperatures=4,
    max_temperatures=4, leapfrog=1, simulated=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Results with a trained model."""
    path = tmp_path_factory.mktemp("bits")
    go("train", BITS, path)
    return path


@pytest.fixture(scope="module")
def trained(out):
    from amortized_bayes.results import RunFolder, find_run

    return loaded(RunFolder.open(find_run(out, "latest", "train")))


def log_joint(model, x):
    """Log p(x, z) of all codes, (B, 16)."""
    logits = model.network(all_codes(4))
    return (x[:, None] * logits - torch.nn.functional.softplus(logits)).sum(-1) - 4 * np.log(2)


def exact_elbo(guide, table, x):
    """The ELBO and the variance of one draw of it, each the sum over all codes, (B,)."""
    codes, odds = all_codes(4), guide.logits(x)[:, None]
    log_q = -torch.nn.functional.softplus((1 - 2 * codes) * odds).sum(-1)
    q, value = log_q.exp(), table - log_q
    mean = (q * value).sum(-1)
    return mean, (q * (value - mean[:, None]).square()).sum(-1)


def test_the_prior_is_fair_bits():
    model = DeepGenerativeBits(9, 3, [5], 4, bayesian=False)
    draws = model.prior().sample((1_000,))
    assert set(draws.flatten().tolist()) == {0.0, 1.0}
    assert draws.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 3_000**0.5)


def test_training_reports_the_elbo_of_all_codes(out, trained):
    rows = trained_rows(out)
    x = trained.data.test.float()
    with torch.no_grad():
        exact, variance = exact_elbo(trained.guide, log_joint(trained.model, x), x)
    found = rows[(rows["metric"] == "final_elbo") & (rows["split"] == "test")].iloc[-1]
    one_draw_each = (variance.sum().sqrt() / len(x)).item()
    assert found["value"] == pytest.approx(exact.mean().item(), abs=4 * one_draw_each + 1e-4)
    curve = rows[(rows["metric"] == "elbo") & (rows["split"] == "train")].sort_values("step")["value"]
    assert curve.iloc[-1] > curve.iloc[0] + 1


def test_a_bit_is_active_where_its_probability_varies_though_its_mode_does_not():
    class Odds(torch.nn.Module):
        def forward(self, x):
            return torch.stack([torch.linspace(-2, -0.4, len(x)), torch.full((len(x),), -1.0)], 1)

    assert active_bits(AmortizedBits("z", Odds()), torch.zeros(10, 9)) == 1


def trained_rows(out):
    from amortized_bayes.results import RunFolder, find_run

    return RunFolder.open(find_run(out, "latest", "train")).rows()


@pytest.fixture(scope="module")
def gaps(out):
    return go("gaps", FEW, out)


def test_gaps_are_exact(gaps, trained):
    (key,) = gaps.done()
    found = gaps.load_arrays(key)
    x = images_at(trained.data.test, found["places"])
    with torch.no_grad():
        table = log_joint(trained.model, x).double()
        log_p, elbo = table.logsumexp(1).numpy(), exact_elbo(trained.guide, table, x)[0].numpy()
    np.testing.assert_allclose(found["exact_log_p"], log_p, atol=1e-4)
    error = (found["elbo"] - elbo).std(ddof=1) / len(x) ** 0.5
    assert abs((found["elbo"] - elbo).mean()) < 4 * error + 1e-4
    assert ((found["elbo_star"] > elbo - 1e-4) & (found["elbo_star"] < log_p + 1e-4)).all()
    np.testing.assert_allclose(found["approximation_gap"], log_p - found["elbo_star"], atol=1e-4)


def test_what_is_summed_is_not_called_a_bound(gaps):
    rows = gaps.rows()
    assert "log_p_lower" not in set(rows["metric"])
    (star,) = rows[rows["metric"] == "elbo_star"]["searched"]
    assert star == "bernoulli"
    assert "the sum over all 16 codes" in rows[rows["metric"] == "exact_log_p"].iloc[0]["note"]
    assert not any("certificate" in line for line in sentences(rows))


def test_blocks_give_the_same(gaps, out):
    blocks = go("gaps", replace(FEW, block_size=10), out)
    whole, parts = (folder.load_arrays(list(folder.done())[-1]) for folder in (gaps, blocks))
    np.testing.assert_allclose(parts["exact_log_p"], whole["exact_log_p"], atol=1e-5)


@pytest.mark.parametrize("config", [decoder_capacity.Config, frozen_decoder.Config, toy_posteriors.Config])
def test_searches_among_gaussians_refuse_bits(config):
    with pytest.raises(SettingError, match="expected --family gaussian or a flow here, got 'bernoulli'"):
        config(model=replace(BITS, latent_dim=2))


def test_qstar_refuses_bits(out):
    with pytest.raises(SettingError, match="expected --family gaussian or a flow here, got 'bernoulli'"):
        go("qstar", qstar.Config(points=2), out)
