"""``celeba`` from start to figures, and its parts: forward KL, a truth that nothing moves, measures in one mode."""

import contextlib
import copy

import pytest
import torch
from test_image_folders import pictures
from torch import nn

from amortized_bayes.dcgan import Critic, ImageGenerator, settle_norms
from amortized_bayes.divergence import Divergence
from amortized_bayes.evaluation.bounds import elbo
from amortized_bayes.experiments import image_setup, image_stages
from amortized_bayes.experiments.image_measures import Measures, forward_kl
from amortized_bayes.experiments.image_settings import Config
from amortized_bayes.experiments.image_setup import Source, build_encoder, build_truth, images_at, simulate
from amortized_bayes.experiments.image_stages import one_draw_elbo
from amortized_bayes.experiments.image_training import descend, training
from amortized_bayes.guides import Amortized
from amortized_bayes.keeping import Keeper
from amortized_bayes.models import LinearGaussian
from amortized_bayes.presenting.claims import claims_found
from amortized_bayes.presenting.drifting import drifting_images
from amortized_bayes.results import RunFolder, list_runs
from amortized_bayes.results.rows import to_frame
from amortized_bayes.results.summary import summarise
from amortized_bayes.sites import latent_sites
from amortized_bayes.types import Row

SMALL = [
    *("--latent-dim", "3", "--channels", "4", "--gan-steps", "4", "--classifier-steps", "4", "--encoder-steps", "6"),
    *("--joint-steps", "6", "--batch-size", "8", "--checkpoints", "2", "--frechet-images", "40", "--test-points", "20"),
    *("--points", "2", "--particles", "25", "--jobs", "1"),
]
MICRO = Config(latent_dim=3, channels=4, batch_size=8, frechet_images=40, test_points=20, points=2, particles=25)
SOURCE = Source(torch.zeros(9, 64, dtype=torch.uint8), None, (torch.zeros(2, 64), None), (1, 8, 8), 16)


def networks():
    """A truth in evaluation mode whose batch norm has seen something, and an encoder."""
    truth, guide = build_truth(MICRO, SOURCE), build_encoder(MICRO, SOURCE)
    settle_norms(truth.network, iter(torch.randn(5, 16, 3)))
    return truth.eval().requires_grad_(False), guide


@pytest.mark.slow
def test_celeba_from_start_to_figures(call, place, monkeypatch):
    truths = []
    build = image_stages.build_truth
    monkeypatch.setattr(image_stages, "build_truth", lambda *given: truths.append(build(*given)) or truths[-1])
    ran = call("celeba", "--dataset", "digits", *SMALL)
    assert ran.code == 0, ran.err
    (info,) = list_runs(place / "results")
    folder = RunFolder.open(info.path)
    assert folder.verify() == []
    assert {path.name for path in folder.path.glob("*.png")} == {"celeba_training.png", "celeba_images.png"}
    (truth,) = truths  # after all training it is, bit for bit, what the first job left
    kept = folder.load_tensors("truth+dataset=digits+seed=0")
    assert all((kept[f"model.{name}"] == tensor.numpy()).all() for name, tensor in truth.state_dict().items())
    rows = folder.rows()
    finals = summarise(rows)

    def value(metric, **factors):
        own = finals[(finals["metric"] == metric)]
        for name, wanted in factors.items():
            own = own[own[name] == wanted]
        (found,) = own["value"]
        return found

    for stage in ("encoder", "joint"):
        few = {"stage": stage, "split": "searched"}
        assert value("approximation_gap", **few) == pytest.approx(value("log_p", **few) - value("elbo_star", **few))
        assert value("elbo", **few) - 1 < value("elbo_star", **few) < value("log_p", **few) + 1  # of draws
        many = {"stage": stage, "split": "test"}
        assert value("elbo", **many) == pytest.approx(value("reconstruction", **many) - value("kl", **many))
        assert value("frechet_classifier", stage=stage, set="truth again") == value(
            "frechet_classifier", stage="joint", set="truth again"
        )
    # where the decoder is the truth, its samples are the truth's own, bit for bit
    assert value("frechet_classifier", stage="encoder", set="samples") == value(
        "frechet_classifier", stage="encoder", set="truth again"
    )
    assert value("frechet_classifier", stage="joint", set="samples") != value(
        "frechet_classifier", stage="encoder", set="samples"
    )
    assert value("log_p_lost", stage="encoder", split="searched") == 0
    exact = -0.5 * 64 * (1 + torch.log(torch.tensor(2 * torch.pi * 0.05**2)).item())  # E log p(x|z) of the truth
    assert value("log_p_of_truth", stage="joint", split="test") == pytest.approx(exact, abs=3 * (32 / 20) ** 0.5)
    assert value("log_p_above", stage="encoder", split="test") > value("elbo", stage="encoder", split="test")
    steps = rows[(rows["metric"] == "elbo") & (rows["split"] == "test")]["step"].tolist()
    assert steps == [3, 6, 6, 9, 12]
    assert "when encoder and decoder are trained jointly" in ran.out
    assert "Fréchet distance (classifier features)" in ran.out
    assert len(list(claims_found("celeba", finals.assign(dataset="celeba"), "quick"))) == 2


@pytest.mark.slow
def test_a_folder_without_labels_is_compared_by_the_discriminator(call, place):
    pictures(place / "faces", 30)
    small = [word if word != "40" else "73" for word in SMALL]  # 64 features of four halvings
    ran = call("celeba", "--images", str(place / "faces"), *small, "--sigma", "learned")
    assert ran.code == 0, ran.err
    assert "Fréchet distance (discriminator features)" in ran.out
    rows = RunFolder.open(list_runs(place / "results")[0].path).rows()
    sigma = rows[rows["metric"] == "learned_sigma"].groupby("stage")["value"].last()
    assert sigma["encoder"] == pytest.approx(0.05)
    assert sigma["joint"] != pytest.approx(0.05, abs=1e-6)
    assert set(rows["dataset"]) == {"faces"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dataset digits --frechet-images 4", "images for a Fréchet distance of 16 features, so that"),
        ("--dataset digits --images x", "expected --dataset or --images, got both"),
        ("--images gone", "expected a folder of images, got"),
        ("--dataset celeba", "without --dataset celeba the same stages run on fashion-mnist"),
        ("--dataset digits --noise 0", "expected --noise above 0, got 0"),
        ("--dataset digits --sigma free", "--sigma"),
        ("--dataset digits --batch-size 5000", "expected --batch-size of at most 1,500 images, got 5,000"),
    ],
)
def test_bad_input_is_one_line(refused, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert message in refused("celeba", *arguments.split())


def test_forward_kl_finds_the_posterior_of_a_linear_generator():
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0], [0.0, -0.5]])  # orthogonal columns: it factorizes
    model = LinearGaussian(weight, torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.6)
    guide = Amortized(latent_sites(model, torch.zeros(2, 4)).local, 1, 4, depth=0)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(guide.parameters(), 0.02)

    def draw(count):
        z = torch.randn(count, 2, generator=generator)
        return z, z @ weight.T + model.bias + 0.6 * torch.randn(count, 4, generator=generator)

    def step():
        optimizer.param_groups[0]["lr"] *= 0.995
        z, x = draw(500)
        loss = -forward_kl(guide, x, z).mean()
        descend(optimizer, loss)
        return loss.detach()

    list(training("linear", [(guide, optimizer)], step, [1000], generator, lambda *_: None))
    _, x = draw(50)
    loc, log_scale = guide.locate(x, torch.arange(50)).chunk(2, -1)
    exact = model.posterior(x)
    assert torch.allclose(loc, exact.mean, atol=0.03)
    assert torch.allclose(log_scale.exp(), exact.stddev.expand_as(loc), atol=0.02)


def test_the_loss_of_joint_training_is_the_elbo():
    truth, guide = networks()
    guide.eval()
    x = simulate(truth, 4, torch.Generator().manual_seed(0)).x
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        found = torch.stack([one_draw_elbo(truth, guide, x, generator) for _ in range(400)])
    known = elbo(truth, guide, x, num_draws=400)
    error = torch.hypot(found.std(0) / 20, known.standard_error)
    assert ((found.mean(0) - known.value).abs() < 4 * error).all()


@pytest.mark.parametrize("planted", [False, True])
def test_both_sets_are_made_in_one_mode(monkeypatch, planted):
    """Of a decoder that is the truth, samples are the truth's: unless batch norm looks at the batch on one side."""
    truth, guide = networks()
    measures = Measures(MICRO, 0, truth, SOURCE, nn.Identity())
    model = copy.deepcopy(truth).train()
    guide.train()
    if planted:
        monkeypatch.setattr(image_setup, "evaluating", lambda *_: contextlib.nullcontext())
    assert torch.equal(measures.samples(model), measures.again) != planted
    if not planted:
        once, again = (measures.redecoded(model, guide) for _ in range(2))
        assert torch.equal(once, again)  # no running average has moved
        assert model.training


@pytest.mark.parametrize("noisy", [False, True])
def test_noise_is_on_both_sets_or_on_none(noisy):
    truth, _ = networks()
    measures = Measures(Config(**{**vars(MICRO), "noisy": noisy}), 0, truth, SOURCE, nn.Identity())
    generator = torch.Generator().manual_seed(0)
    exact = images_at(truth, torch.randn(1, 3), generator).mean.shape
    assert exact == (1, 64)
    spread = (measures.samples(truth) - measures.again).std()  # the same means, other noise
    assert spread == pytest.approx(0.05 * 2**0.5 if noisy else 0, rel=0.1)


def test_training_goes_on_where_it_was_killed():
    def run(keeper):
        torch.manual_seed(0)
        network = nn.Linear(3, 1)
        optimizer = torch.optim.Adam(network.parameters(), 0.1)
        generator = torch.Generator().manual_seed(0)

        def step():
            loss = (network(torch.randn(4, 3, generator=generator)) - 1).square().mean()
            descend(optimizer, loss)
            return loss.detach()

        with keeper.watching():
            marks = [p.step for p in training("t", [(network, optimizer)], step, [3, 7], generator, lambda *_: None)]
        assert marks == [3, 7]
        return torch.cat([p.detach().ravel() for p in network.parameters()])

    states = []
    whole = run(Keeper(lambda state: states.append(copy.deepcopy(state)), every=0))
    assert len(states) > 7
    for state in states:
        assert torch.equal(run(Keeper(lambda _: None, state)), whole)


def test_a_loss_that_is_no_number_ends_the_training():
    with pytest.raises(Divergence):
        list(training("t", [], lambda: torch.tensor(float("nan")), [3], torch.Generator(), lambda *_: None))


def test_networks_are_of_square_images_of_powers_of_two():
    assert ImageGenerator(5, 4, (3, 16, 16))(torch.zeros(2, 7, 5)).shape == (2, 7, 768)
    critic = Critic((3, 16, 16), 4, 2)
    assert critic(torch.zeros(2, 768)).shape == (2, 2)
    assert critic.features(torch.zeros(2, 768)).shape == (2, critic.num_features)
    for shape in ((1, 12, 12), (1, 16, 8), (1, 4, 4)):
        with pytest.raises(ValueError, match="expected square images of 8, 16, 32, 64"):
            Critic(shape, 4, 1)


@pytest.mark.parametrize(
    ("elbos", "distances", "words"),
    [
        ((-50.0, 10.0), (0.1, 0.9), "the ELBO rises while samples move away from the truth"),
        ((-50.0, 10.0), (0.9, 0.1), "the ELBO rises, and samples move closer to the truth"),
        ((10.0, -50.0), (0.1, 0.9), "the ELBO falls, and samples move away from the truth"),
        ((10.0, 10.5), (0.1, 0.9), "it is uncertain"),
    ],
)
def test_words_have_the_signs_of_the_numbers(elbos, distances, words):
    rows = []
    for stage, value, distance in zip(("encoder", "joint"), elbos, distances, strict=True):
        here = {"dataset": "digits", "seed": 0, "stage": stage}
        rows.append(Row("celeba", {**here, "split": "test"}, 0, 0.0, "elbo", value, 0.5, "points"))
        own = {**here, "set": "samples"}
        rows.append(Row("celeba", own, 0, 0.0, "frechet_discriminator", distance, 0.01, "points"))
    frame = to_frame({**row._asdict(), "factors": dict(row.factors)} for row in rows)
    (line,) = drifting_images(frame)
    assert words in line
