"""A guide with a flow is held against the best flow of each point, not against the best Gaussian."""

from dataclasses import replace

import pytest
import torch

import amortized_bayes as ab


@pytest.fixture
def flow_problem(linear_problem):
    """A flow guide fitted to a linear-Gaussian model whose posterior is no factorized Gaussian."""
    torch.manual_seed(0)
    model, x, _ = linear_problem
    sites = ab.latent_sites(model, x).local
    settings = ab.FlowSettings("realnvp", num_flows=4, hidden=(20, 20))
    guide = ab.FlowGuide(sites, num_data=len(x), observed=x.shape[1], settings=settings, width=16)
    options = ab.FitOptions(batch_size=len(x), learning_rate=1e-2, capture="off")
    ab.fit(model, guide, x, 600, options)
    return model, guide, x


@pytest.mark.slow
def test_gaps_of_a_flow(flow_problem):
    model, guide, x = flow_problem
    certificate = ab.CertificateSettings(6, target_gap=0.1, max_temperatures=1000)
    settings = ab.DiagnosisSettings(num_particles=500, ais=ab.AISSettings(num_temperatures=40), certificate=certificate)
    gaussian = ab.diagnose(model, guide, x, settings=replace(settings, flow=ab.FlowSettings("gaussian")))
    flow = ab.diagnose(model, guide, x, settings=settings)  # in the guide's own family
    # the flow beats every factorized Gaussian, so that this gap is negative; a point's own flow does no worse
    assert gaussian.gaps().amortization.mean < -0.1
    assert flow.gaps().amortization.mean > -2 * flow.gaps().amortization.mean_error - 0.02
    assert abs(flow.gaps().approximation.mean) < 0.1
    assert flow.settings["family"] == "realnvp"
    assert (flow.settings["flow"]["num_flows"], flow.settings["flow"]["hidden"]) == (4, [20, 20])
    assert "flow" not in gaussian.settings
